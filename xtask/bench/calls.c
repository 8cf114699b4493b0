// Calls one C++ method of a library in batches and prints what a call costs: for each line on stdin one line with the
// median and the least of the batches, nanoseconds of CPU time a call. The objects are all zeros, which suits simple
// geometry: an empty transformation, a box around the origin.
//   calls LIBRARY SYMBOL BATCHES CALLS
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
    double (*method)(void *, void *) = (double (*)(void *, void *))dlsym(library, argv[2]);
    if (!method) return fprintf(stderr, "%s\n", dlerror()), 1;
    int batches = atoi(argv[3]), calls = atoi(argv[4]);
    double *costs = calloc((size_t)batches, sizeof *costs);
    static _Alignas(64) char self[1024], other[1024];
    char line[16];
    printf("ready\n");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        for (int batch = 0; batch < batches; batch++) {
            double begin = now_ns();
            for (int call = 0; call < calls; call++) method(self, other);
            costs[batch] = (now_ns() - begin) / calls;
        }
        qsort(costs, (size_t)batches, sizeof *costs, compare);
        printf("%.2f %.2f\n", costs[batches / 2], costs[0]);
        fflush(stdout);
    }
    return 0;
}
