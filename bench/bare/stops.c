/*
 * Two stops of a bare tracer: gcc -O2 -o stops stops.c
 *
 *   stops NUMBER
 *
 * A child calls getppid so many times, and a seccomp filter stops it before and after each call. Its parent lets it go on, and
 * does nothing else. The child prints the CPU time and the wall time of a call, in nanoseconds.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
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

static int child(int ready, long count)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(*code), .filter = code};
	char byte;
	if (read(ready, &byte, 1) != 1 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter))
		return 1;
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

int main(int count, char **words)
{
	long calls = count > 1 ? atol(words[1]) : 10000, stops = 0, expected = 2 * (calls + 256);
	int ready[2], status;
	if (pipe(ready))
		return 1;
	pid_t pid = fork();
	if (pid == 0)
		_exit(child(ready[0], calls));
	if (pid < 0 || ptrace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL) ||
	    write(ready[1], "x", 1) != 1)
		return 1;
	while (waitpid(-1, &status, __WALL) == pid && WIFSTOPPED(status)) {
		stops++;
		ptrace(status >> 16 == PTRACE_EVENT_SECCOMP ? PTRACE_SYSCALL : PTRACE_CONT, pid, 0, 0);
	}
	return stops != expected || !WIFEXITED(status) || WEXITSTATUS(status);
}
