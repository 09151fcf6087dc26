/*
 * A program that tries one thing that the jail forbids: gcc -o jailed jailed.c
 *
 *   jailed read FILE | list FOLDER | write FILE | connect PORT | send PORT | kill PID | bomb | fill FOLDER | sparse FILE |
 *          memory | ptrace PID | node FILE | daemon | kvm | mode FILE | times FILE | key | vsock
 *
 * It prints "done" if it succeeds, and otherwise the error. `bomb` prints the number of its children, and `fill` the MiB.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

static int done(int good)
{
	puts(good ? "done" : strerror(errno));
	return !good;
}

static int network(int kind, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port)), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, kind, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)))
		return done(0);
	return done(write(fd, "x", 1) == 1);
}

static int bomb(void)
{
	int children = 0;
	while (children < 5000) {
		int pid = fork();
		if (pid < 0)
			break;
		if (!pid) {
			pause();
			_exit(0);
		}
		children++;
	}
	printf("%d children\n", children);
	fflush(stdout);
	kill(0, SIGKILL);
	return 0;
}

static int fill(const char *folder)
{
	static char block[1 << 20];
	int blocks = 0;
	memset(block, 'x', sizeof(block));
	for (int number = 0; number < 20; number++) {
		char name[512];
		snprintf(name, sizeof(name), "%s/fill-%d", folder, number);
		int fd = open(name, O_WRONLY | O_CREAT, 0600);
		for (int count = 0; fd >= 0 && count < 64 && write(fd, block, sizeof(block)) == sizeof(block); count++)
			blocks++;
		close(fd);
	}
	printf("%d MiB\n", blocks);
	return 0;
}

int main(int count, char **words)
{
	const char *action = count > 1 ? words[1] : "", *word = count > 2 ? words[2] : "";
	signal(SIGXFSZ, SIG_IGN);
	if (!strcmp(action, "read")) {
		char text[64];
		int fd = open(word, O_RDONLY);
		return done(fd >= 0 && read(fd, text, sizeof(text)) >= 0);
	}
	if (!strcmp(action, "list"))
		return done(opendir(word) != NULL);
	if (!strcmp(action, "write"))
		return done(open(word, O_WRONLY | O_CREAT, 0600) >= 0);
	if (!strcmp(action, "connect"))
		return network(SOCK_STREAM, word);
	if (!strcmp(action, "send"))
		return network(SOCK_DGRAM, word);
	if (!strcmp(action, "kill"))
		return done(!kill(atoi(word), SIGKILL));
	if (!strcmp(action, "ptrace"))
		return done(!ptrace(PTRACE_ATTACH, atoi(word), 0, 0));
	if (!strcmp(action, "bomb"))
		return bomb();
	if (!strcmp(action, "fill"))
		return fill(*word ? word : getenv("TMPDIR"));
	if (!strcmp(action, "sparse"))
		return done(!truncate(word, 20l << 30) || (errno == ENOENT && open(word, O_CREAT | O_WRONLY, 0600) >= 0));
	if (!strcmp(action, "memory"))
		return done(mmap(0, 20l << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
	if (!strcmp(action, "node"))
		return done(!mknod(word, S_IFBLK | 0600, makedev(254, 0)));
	if (!strcmp(action, "key"))
		return done(syscall(SYS_add_key, "user", "vmm-test", "x", 1, -4) >= 0);
	if (!strcmp(action, "vsock"))
		return done(socket(AF_VSOCK, SOCK_STREAM, 0) >= 0);
	if (!strcmp(action, "mode"))
		return done(!chmod(word, 0600));
	if (!strcmp(action, "times"))
		return done(!utimensat(AT_FDCWD, word, NULL, 0));
	if (!strcmp(action, "daemon")) {
		if (daemon(0, 0))
			return done(0);
		pause();
	}
	if (!strcmp(action, "kvm"))
		return done(open("/dev/kvm", O_RDWR) >= 0);
	return 2;
}
