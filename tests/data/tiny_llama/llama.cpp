#include <cstdio>
#include <cstring>

#ifdef TINY_VULKAN
#include <vulkan/vulkan.h>
#endif

#ifdef TINY_BREAK
static int broken = "this does not compile";
#endif

// As the asserts of llama.cpp do: the name that this file was compiled by.
const char * source_name() {
    return __FILE__;
}

int answer(const char * question) {
    if (std::strcmp(question, "--version") == 0) {
        std::fprintf(stderr, "version: %d (%s)\nbuilt with a compiler for Linux\n", NUMBER, COMMIT);
        return 0;
    }
    if (std::strcmp(question, "--help") == 0) {
        std::puts("----- common params -----\n");
        std::puts("-h,    --help, --usage                  print usage and exit");
        std::puts("-m,    --model FNAME                    model path to load\n"
                  "                                        (env: LLAMA_ARG_MODEL)");
        return 0;
    }
    if (std::strcmp(question, "--list-devices") == 0) {
#ifdef TINY_VULKAN
        uint32_t version = 0;
        vkEnumerateInstanceVersion(&version);
#endif
        std::puts("Available devices:");
        if (DEVICES[0]) {
            std::printf("  %s\n", DEVICES);
        }
        return 0;
    }
    return 1;
}
