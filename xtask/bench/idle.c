// Maps libraries and does nothing until its input ends: `idle LIBRARY…`.
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (!dlopen(argv[i], RTLD_LAZY)) return fprintf(stderr, "%s\n", dlerror()), 1;
    printf("ready\n");
    fflush(stdout);
    while (getchar() != EOF) {}
    return 0;
}
