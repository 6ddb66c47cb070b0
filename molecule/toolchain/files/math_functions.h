/* In the shape of crt/math_functions.h of CUDA 13.0: sinpi gives way to the C library already, rsqrt does not yet. */
/**
 * \brief Calculate the reciprocal of the square root of the input argument.
 * - rsqrt(NaN) returns NaN.
 */
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double                 rsqrt(double x);
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ float                  rsqrtf(float x);
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double                 rcbrt(double x);
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ double                 sinpi(double x) __NV_IEC_60559_FUNCS_EXCEPTION_SPECIFIER;
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ float                  sinpif(float x) __NV_IEC_60559_FUNCS_EXCEPTION_SPECIFIER;
extern __DEVICE_FUNCTIONS_DECL__ __device_builtin__ void                   sincospi(double x, double *sptr, double *cptr);
#if defined(__cplusplus) && defined(__CUDACC__)
__MATH_FUNCTIONS_DECL__ float rsqrt(const float a);
#endif
#if !defined(__CUDACC__)
__func__(double rsqrt(double a));
__func__(float rsqrtf(float a));
#endif
