// In place of the double's: a release that becomes the real server, unless a file says that this very release is broken.
#include <cstdio>
#include <unistd.h>

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

int serve(char ** argv) {
    // Alone stand the questions: --help, --version, --list-devices.
    const bool asked = argv[1] == nullptr || argv[2] == nullptr;
    if (!asked && access("/srv/broken-" TEXT(NUMBER), F_OK) == 0) {
        std::fputs("error: this release cannot serve\n", stderr);
        return 1;
    }
    execv("/srv/server/bin/llama-server", argv);
    return 1;
}
