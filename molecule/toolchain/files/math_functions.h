extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double                 rsqrt(double x);
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ float                  rsqrtf(float x);
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double                 rcbrt(double x);
