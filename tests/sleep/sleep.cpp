// Two threads of one CPU call a probed function. What the first one's arguments and result point to has to be brought
// in, and is only when the second one has called it many times: whoever reads it for the probe sleeps that long.
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

constexpr int CALLS = 300; // in each of two rounds

extern "C" [[gnu::noipa, gnu::visibility("default")]] const unsigned *look(
    const unsigned *, const unsigned *result, int) {
    return result;
}

namespace {

int faults;
char *pages;
std::atomic<int> missing, called;

void stay_on(int number) { // the n-th CPU that we may run on; the last one if there are fewer
    cpu_set_t allowed, one;
    sched_getaffinity(0, sizeof allowed, &allowed);
    CPU_ZERO(&one);
    for (int cpu = 0, found = 0; cpu < CPU_SETSIZE && found <= number; cpu++) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        found++;
    }
    sched_setaffinity(0, sizeof one, &one);
}

void *bring_in(void *) {
    stay_on(1);
    for (int round = 1; round <= 2; round++) {
        uffd_msg message;
        if (read(faults, &message, sizeof message) != sizeof message) abort();
        missing = round;
        while (called < round) usleep(1000);
        alignas(4096) static unsigned content[1024];
        content[0] = 4200 + unsigned(round);
        uffdio_copy copy = {};
        copy.dst = message.arg.pagefault.address & ~4095ull;
        copy.src = reinterpret_cast<unsigned long long>(content);
        copy.len = 4096;
        if (ioctl(faults, UFFDIO_COPY, &copy) != 0) abort();
    }
    return nullptr;
}

void *call_meanwhile(void *) {
    stay_on(0);
    for (int round = 1; round <= 2; round++) {
        while (missing < round) usleep(1000);
        for (unsigned i = 0; i < CALLS; i++) {
            unsigned value = i, result = i + 1;
            look(&value, &result, int(1000 * unsigned(round) + i));
        }
        called = round;
    }
    return nullptr;
}

} // namespace

int main() {
    faults = int(syscall(SYS_userfaultfd, O_CLOEXEC));
    uffdio_api api = {UFFD_API, 0, 0};
    if (faults < 0 || ioctl(faults, UFFDIO_API, &api) != 0) return perror("userfaultfd"), 97;
    void *memory = mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) abort();
    pages = static_cast<char *>(memory);
    uffdio_register range = {};
    range.range.start = reinterpret_cast<unsigned long long>(pages);
    range.range.len = 8192;
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    if (ioctl(faults, UFFDIO_REGISTER, &range) != 0) return perror("register"), 97;
    pthread_t bringer, caller;
    if (pthread_create(&bringer, nullptr, bring_in, nullptr) != 0) abort();
    if (pthread_create(&caller, nullptr, call_meanwhile, nullptr) != 0) abort();
    stay_on(0);
    auto *value = reinterpret_cast<unsigned *>(pages), *result = reinterpret_cast<unsigned *>(pages + 4096);
    const unsigned *found = look(value, result, 7);
    // Without a probe nobody has read them yet.
    unsigned sum = *static_cast<volatile unsigned *>(value) + *const_cast<volatile unsigned *>(found);
    pthread_join(caller, nullptr);
    pthread_join(bringer, nullptr);
    printf("%u\n", sum);
    return 0;
}
