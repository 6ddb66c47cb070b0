#include <csignal>
#include <unistd.h>

int answer(const char * question);

int main(int argc, char ** argv) {
#ifdef TINY_NEEDS_CPU
    std::raise(SIGILL);
#endif
    if (argc > 1) {
        return answer(argv[1]);
    }
    // A server serves until it is told to stop.
    pause();
    return 0;
}
