/*
 * Runs a program with some system calls forbidden, as in a container: gcc -o forbid forbid.c
 *
 *   forbid CALL[,CALL]... PROGRAM [ARG]...
 *
 * A CALL is one of the names below. It fails with EPERM. `none` forbids nothing, but there is a filter.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static const struct {
	const char *name;
	int number;
} calls[] = {{"ptrace", SYS_ptrace}, {"unshare", SYS_unshare}, {"seccomp", SYS_seccomp}, {"pidfd_getfd", SYS_pidfd_getfd},
	     {"kcmp", SYS_kcmp}, {"process_vm_readv", SYS_process_vm_readv}, {"landlock", SYS_landlock_create_ruleset}, {"none", -1}};

static struct sock_filter code[32] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};

int main(int count, char **words)
{
	unsigned short size = 1;
	if (count < 3)
		return 2;
	for (char *name = strtok(words[1], ","); name; name = strtok(NULL, ","))
		for (size_t index = 0; index < sizeof(calls) / sizeof(*calls); index++)
			if (!strcmp(name, calls[index].name)) {
				code[size++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[index].number, 0, 1);
				code[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
			}
	code[size++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog filter = {.len = size, .filter = code};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter)) {
		perror("forbid");
		return 2;
	}
	execvp(words[2], words + 2);
	perror(words[2]);
	return 127;
}
