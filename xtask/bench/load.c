// Calls one C++ method of a library at a steady rate from some threads, for a time, and prints how many calls it made and
// how long it took: `load LIBRARY SYMBOL RATE SECONDS THREADS`. A rate of 0 is as fast as it goes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static double (*method)(void *, void *);
static double rate, seconds;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void *run(void *made) {
    char self[1024] = {0}, other[1024] = {0};
    double begin = now();
    unsigned long calls = 0;
    for (;;) {
        double passed = now() - begin;
        if (passed >= seconds) break;
        // What is due, in portions, so that nothing bursts: a core that was away for long makes up for it slowly.
        unsigned long due = rate > 0 ? (unsigned long)(passed * rate) : calls + 1000;
        unsigned long portion = due > calls ? due - calls : 0;
        if (portion > 1000) portion = 1000;
        for (unsigned long call = 0; call < portion; call++) method(self, other);
        calls += portion;
        if (rate > 0 && portion < 1000) usleep(500);
    }
    *(unsigned long *)made = calls;
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    method = (double (*)(void *, void *))dlsym(library, argv[2]);
    if (!method) return fprintf(stderr, "%s\n", dlerror()), 1;
    int threads = atoi(argv[5]);
    rate = atof(argv[3]) / threads, seconds = atof(argv[4]);
    pthread_t *ids = calloc((size_t)threads, sizeof *ids);
    unsigned long *made = calloc((size_t)threads, sizeof *made), all = 0;
    printf("ready\n");
    fflush(stdout);
    if (getchar() == EOF) return 1;
    double begin = now();
    for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, run, &made[i]);
    for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL), all += made[i];
    printf("%lu %.3f\n", all, now() - begin);
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
