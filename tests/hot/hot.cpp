// Calls one function often and one now and then, once it is told to, and prints how often: `hot MILLISECONDS`.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define PROBED extern "C" [[gnu::noipa, gnu::visibility("default")]]

static volatile int sink;

PROBED int hot(int n) {
    sink = n;
    return n + 1;
}

PROBED int calm(int n) {
    sink = hot(n);
    return n + 2;
}

int main(int argc, char **argv) {
    if (argc != 2 || getchar() == EOF) return 2;
    long hots = 0, calms = 0;
    for (int passed = 0; passed < atoi(argv[1]); passed++) {
        for (int i = 0; i < 100; i++) hot(i), hots++;
        calm(passed), calms++, hots++;
        usleep(1000);
    }
    printf("%ld %ld\n", hots, calms);
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
