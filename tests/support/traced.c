/*
 * A VMM for the tests of `vmm observe --engine ptrace`: gcc -pthread -o traced traced.c -ldl
 *
 *   traced MODE
 *
 * Each mode is difficult for a tracer. With -DRAW it does not call the `ioctl` of the C library. A mode that finds something wrong says so on stdout and returns 1.
 */
#ifdef RAW
/* Makes its system calls itself. */
#include <sys/ioctl.h>
#define ioctl(...) syscall(SYS_ioctl, __VA_ARGS__)
#endif
#define LIBRARY
#include "observed.c"

#include <linux/sched.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/socket.h>

/* A guest that jumps to where it has no memory: jmp 0x2000:0 */
static const uint8_t lost[] = {0xea, 0x00, 0x00, 0x00, 0x20};

/*
 * long probe(int fd, unsigned long request, void *argument): calls ioctl, and checks that it changes no register and no byte of
 * the red zone. Returns the result, or -9999.
 */
asm(".text\n"
    "probe:\n"
    "	push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rdi; push %rsi; push %rdx\n"
    "	movabs $0x1122334455667788, %rbx\n"
    "	lea 1(%rbx), %rbp; lea 2(%rbx), %r8; lea 3(%rbx), %r9; lea 4(%rbx), %r10\n"
    "	lea 5(%rbx), %r12; lea 6(%rbx), %r13; lea 7(%rbx), %r14; lea 8(%rbx), %r15\n"
    "	movq %rbx, %xmm7; movq %rbp, %xmm15\n"
    "	mov %rbx, -8(%rsp); mov %rbp, -64(%rsp); mov %r8, -128(%rsp)\n"
    "	mov $16, %eax\n"
    "	syscall\n"
    "1:	lea 1b(%rip), %r11; cmp %r11, %rcx; jne 2f\n"
    "	cmp %rdx, (%rsp); jne 2f; cmp %rsi, 8(%rsp); jne 2f; cmp %rdi, 16(%rsp); jne 2f\n"
    "	cmp %rbx, -8(%rsp); jne 2f; cmp %rbp, -64(%rsp); jne 2f; cmp %r8, -128(%rsp); jne 2f\n"
    "	movq %xmm7, %rcx; cmp %rbx, %rcx; jne 2f; movq %xmm15, %rcx; cmp %rbp, %rcx; jne 2f\n"
    "	movabs $0x1122334455667788, %rcx; cmp %rcx, %rbx; jne 2f\n"
    "	inc %rcx; cmp %rcx, %rbp; jne 2f; inc %rcx; cmp %rcx, %r8; jne 2f; inc %rcx; cmp %rcx, %r9; jne 2f\n"
    "	inc %rcx; cmp %rcx, %r10; jne 2f; inc %rcx; cmp %rcx, %r12; jne 2f; inc %rcx; cmp %rcx, %r13; jne 2f\n"
    "	inc %rcx; cmp %rcx, %r14; jne 2f; inc %rcx; cmp %rcx, %r15; je 3f\n"
    "2:	mov $-9999, %rax\n"
    "3:	pop %rdx; pop %rsi; pop %rdi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
    "	ret\n");
extern long probe(int fd, unsigned long request, void *argument);

/* What the kernel knows of this process: its mappings, its descriptors, and its blocked signals. */
static void look(char *text, size_t size)
{
	size_t used = 0;
	int maps = open("/proc/self/maps", O_RDONLY);
	long got;
	while ((got = read(maps, text + used, size - used - 1)) > 0)
		used += got;
	close(maps);
	for (int fd = 0; fd < 256 && used < size - 300; fd++)
		text[used++] = fcntl(fd, F_GETFD) < 0 ? '0' : '1';
	sigset_t set;
	NEED(sigprocmask(SIG_BLOCK, NULL, &set) == 0);
	for (int signal = 1; signal < 32; signal++)
		text[used++] = sigismember(&set, signal) ? '1' : '0';
	text[used] = 0;
}

static char before[1 << 16], after[1 << 16];

/* The observer makes calls in this thread when the guest dies, at its first entry, and when registers are refused. */
static int dies_probed(void)
{
	struct machine machine = make(lost, sizeof(lost));
	struct kvm_sregs sregs, wrong;
	NEED(ioctl(machine.vcpu, KVM_GET_SREGS, &sregs) == 0);
	look(before, sizeof(before));
	wrong = sregs;
	/* Long mode without PAE. */
	wrong.cr0 |= 0x80000001;
	wrong.efer |= 0x100;
	wrong.cr4 = 0;
	NEED(probe(machine.vcpu, KVM_SET_SREGS, &wrong) == -EINVAL);
	for (int times = 0; times < 3; times++) {
		NEED(probe(machine.vcpu, KVM_RUN, 0) == 0);
		NEED(machine.run->exit_reason == KVM_EXIT_INTERNAL_ERROR);
	}
	look(after, sizeof(after));
	NEED(!strcmp(before, after));
	unmake(&machine);
	machine = make(guest, sizeof(guest));
	NEED(probe(machine.vcpu, KVM_RUN, 0) == 0 && machine.run->exit_reason == KVM_EXIT_IO);
	NEED(run_on(machine.vcpu, machine.run) == EXITS - 1);
	return 0;
}

/* The same in a program that would be killed for the calls of the observer. */
static int is_narrow(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KVM_GET_STATS_FD, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, KVM_GET_REGS, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(*code), .filter = code};
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
	struct machine machine = make(lost, sizeof(lost));
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0 && machine.run->exit_reason == KVM_EXIT_INTERNAL_ERROR);
	return 0;
}

/* A child that stops, and goes on. */
static int has_jobs(void)
{
	int status;
	pid_t child = fork();
	if (child == 0) {
		raise(SIGSTOP);
		_exit(plain() + 3);
	}
	NEED(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
	struct timespec pause = {.tv_nsec = 30 * 1000 * 1000};
	nanosleep(&pause, NULL);
	NEED(waitpid(child, &status, WNOHANG | WUNTRACED) == 0);
	NEED(kill(child, SIGCONT) == 0);
	NEED(waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
	NEED(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 3);
	return 0;
}

/* A vCPU that comes back in a message, under another number, while its old number means another vCPU. */
static int passes_rights(void)
{
	struct machine machine = make(guest, sizeof(guest)), other = make(guest, sizeof(guest));
	int pair[2];
	char byte = 'x', control[CMSG_SPACE(sizeof(int))];
	struct iovec vector = {&byte, 1};
	struct msghdr header = {
		.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
	struct cmsghdr *message = CMSG_FIRSTHDR(&header);
	message->cmsg_level = SOL_SOCKET;
	message->cmsg_type = SCM_RIGHTS;
	message->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(message), &machine.vcpu, sizeof(int));
	for (int exits = 0; exits < 100; exits++)
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0 && handle(machine.run));
	NEED(sendmsg(pair[0], &header, 0) == 1);
	NEED(dup2(other.vcpu, machine.vcpu) == machine.vcpu && close(other.vcpu) == 0);
	NEED(recvmsg(pair[1], &header, 0) == 1);
	int again;
	memcpy(&again, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(int));
	NEED(again == other.vcpu);
	NEED(run_on(machine.vcpu, other.run) == EXITS);
	NEED(run_on(again, machine.run) == EXITS - 100);
	return 0;
}

static void *execute(void *argument)
{
	execl(argument, argument, "plain", NULL);
	_exit(99);
}

static void *idle(void *argument)
{
	for (;;)
		pause();
	return argument;
}

/* A thread that is not the first one executes a program: the process gets its number, and the others end. */
static int executes_in_thread(char *self)
{
	pthread_t thread;
	NEED(plain() == 0);
	NEED(pthread_create(&thread, NULL, idle, NULL) == 0 && pthread_create(&thread, NULL, execute, self) == 0);
	idle(NULL);
	return 1;
}

static void *outlive(void *argument)
{
	struct timespec pause = {.tv_nsec = 150 * 1000 * 1000};
	struct machine *machine = argument;
	nanosleep(&pause, NULL);
	NEED(run_on(machine->vcpu, machine->run) == EXITS - 1);
	NEED(plain() == 0);
	exit(0);
}

/* The first thread ends early. */
static int leader_ends(void)
{
	static struct machine machine;
	pthread_t thread;
	machine = make(guest, sizeof(guest));
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0);
	NEED(pthread_create(&thread, NULL, outlive, &machine) == 0);
	pthread_exit(NULL);
}

static void *own_descriptors(void *argument)
{
	NEED(unshare(CLONE_FILES) == 0);
	/* Takes the numbers that the other thread uses for other files. */
	NEED(plain() == 0);
	return argument;
}

/* A thread with descriptors of its own, whose numbers mean other vCPUs than those of the first thread. */
static int unshares(void)
{
	pthread_t thread;
	NEED(pthread_create(&thread, NULL, own_descriptors, NULL) == 0 && pthread_join(thread, NULL) == 0);
	return plain();
}

/* The program is traced already, and so are its children. */
static int traces(void)
{
	NEED(ptrace(PTRACE_TRACEME, 0, 0, 0) == -1 && errno == EPERM);
	return plain();
}

int main(int count, char **words)
{
	const char *mode = count > 1 ? words[1] : "plain";
#define MODE(name, call)                                                                                              \
	if (!strcmp(mode, name))                                                                                      \
	return call
	MODE("plain", plain());
	MODE("die", dies_probed());
	MODE("narrow", is_narrow());
	MODE("jobs", has_jobs());
	MODE("rights", passes_rights());
	MODE("thread-exec", executes_in_thread(words[0]));
	MODE("leader", leader_ends());
	MODE("unshare", unshares());
	MODE("trace", traces());
	return 2;
}
