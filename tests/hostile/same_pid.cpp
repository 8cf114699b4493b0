// Runs workers one after the other, each with the process id that the first had: same_pid ROUNDS PROGRAM. Each gets other
// arguments and another kind of job, and the next begins as soon as the one before has been waited for.
#include <errno.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

namespace {

// A fork whose child has this id, or any.
pid_t fork_as(pid_t pid) {
    clone_args arguments = {};
    arguments.exit_signal = SIGCHLD;
    if (pid != 0) {
        arguments.set_tid = reinterpret_cast<unsigned long long>(&pid);
        arguments.set_tid_size = 1;
    }
    return pid_t(syscall(SYS_clone3, &arguments, sizeof arguments));
}

} // namespace

int main(int count, char **arguments) {
    if (count != 3) return 99;
    pid_t pid = 0;
    for (int round = 0; round < atoi(arguments[1]); round++) {
        // Somebody else can have got it meanwhile; he will not keep it.
        pid_t child;
        for (int tries = 0; (child = fork_as(pid)) < 0 && errno == EEXIST && tries < 60'000; tries++) usleep(1000);
        if (child < 0) return perror("clone3"), 98;
        if (child == 0) {
            bool odd = round % 2 == 1;
            setenv("FLOW_TYPE", odd ? "odd" : "even", 1);
            std::string calls = std::to_string(10 + round);
            execl(arguments[2], arguments[2], "told", calls.c_str(), odd ? "0" : "100", odd ? "3" : "0", nullptr);
            _exit(97);
        }
        pid = child;
        int status = 0;
        if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != (round % 2 == 1 ? 3 : 0)) return 96;
    }
    return 0;
}
