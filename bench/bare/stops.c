/*
 * A bare tracer: gcc -O2 -o stops stops.c
 *
 *   stops NUMBER
 *   stops PROGRAM [ARGUMENT]...
 *
 * With a number, a child calls getppid so many times, and prints the CPU time and the wall time of a call in nanoseconds. A
 * seccomp filter stops it before and after each call. With a program, the filter stops it before and after each call of KVM_RUN.
 * The tracer lets it go on, and does nothing else.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double nanoseconds(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

/* Stops at a system call whose second argument has this lower half; any value of it is right if `is_exact` is 0. */
static int filter(unsigned number, unsigned argument, int is_exact)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, argument, 0, is_exact),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(code) / sizeof(*code), .filter = code};
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	       syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &program);
}

static int call(long count)
{
	for (int calls = 0; calls < 256; calls++)
		syscall(SYS_getppid);
	double cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID), wall = nanoseconds(CLOCK_MONOTONIC);
	for (long calls = 0; calls < count; calls++)
		syscall(SYS_getppid);
	cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	printf("%.1f %.1f\n", cpu / count, wall / count);
	fflush(stdout);
	return 0;
}

static int child(int ready, char **words)
{
	char byte, *end;
	long count = strtol(words[1], &end, 10);
	if (read(ready, &byte, 1) != 1 || (*end ? filter(SYS_ioctl, KVM_RUN, 1) : filter(SYS_getppid, 0, 0)))
		return 1;
	if (!*end)
		return call(count);
	execvp(words[1], words + 1);
	return 1;
}

int main(int count, char **words)
{
	int ready[2], status, options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL;
	if (count < 2 || pipe(ready))
		return 2;
	pid_t pid = fork();
	if (pid == 0)
		_exit(child(ready[0], words));
	if (pid < 0 || ptrace(PTRACE_SEIZE, pid, 0, options) || write(ready[1], "x", 1) != 1)
		return 2;
	while (waitpid(-1, &status, __WALL) == pid && WIFSTOPPED(status))
		ptrace(status >> 16 == PTRACE_EVENT_SECCOMP ? PTRACE_SYSCALL : PTRACE_CONT, pid, 0, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}
