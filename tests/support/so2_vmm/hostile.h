/* Programs that do more than the assignment asks for, or less. */
#ifdef MISTAKE_ATTACK
#include <errno.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

/* The grader, by its number in /proc, which is not that of this process's namespace. */
static pid_t find_grader(void)
{
	char text[512] = "";
	int file = open("/proc/self/stat", O_RDONLY), parent = 0;

	need(read(file, text, sizeof(text) - 1) > 0, "read /proc/self/stat");
	need(sscanf(strrchr(text, ')'), ") %*c %d", &parent) == 1 && parent > 1, "the parent");
	close(file);
	return parent;
}

/* Tries to stop, to end, to trace and to change the grader. All of it must fail. */
static void attack(void)
{
	pid_t grader = find_grader();
	long secret = 0;
	struct iovec own = {&secret, sizeof(secret)}, other = {&secret, sizeof(secret)};
	struct rlimit none = {0, 0};
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d", grader);
	int folder = open(path, O_RDONLY | O_DIRECTORY);
	snprintf(path, sizeof(path), "/proc/%d/mem", grader);
	int memory = open(path, O_RDWR);
	static const int signals[] = {SIGSTOP, SIGINT, SIGTERM, SIGKILL};
	for (size_t index = 0; index < sizeof(signals) / sizeof(*signals); ++index) {
		need(kill(grader, signals[index]) < 0, "kill fails");
		need(syscall(SYS_tgkill, grader, grader, signals[index]) < 0, "tgkill fails");
		need(syscall(SYS_tkill, grader, signals[index]) < 0, "tkill fails");
		if (folder >= 0)
			need(syscall(SYS_pidfd_send_signal, folder, signals[index], NULL, 0) < 0, "pidfd_send_signal fails");
	}
	need(memory < 0, "opening the memory fails");
	need(ptrace(PTRACE_SEIZE, grader, NULL, NULL) < 0, "ptrace fails");
	need(process_vm_readv(grader, &own, 1, &other, 1, 0) < 0 && errno != EFAULT, "process_vm_readv fails");
	need(prlimit(grader, RLIMIT_CPU, &none, NULL) < 0, "prlimit fails");
	need(setpriority(PRIO_PROCESS, grader, 19) < 0, "setpriority fails");
}
#endif

static void misbehave(void)
{
#ifdef MISTAKE_ENDLESS
	for (;;)
		pause();
#endif
#ifdef MISTAKE_ATTACK
	attack();
#endif
#ifdef MISTAKE_CRASH
	abort();
#endif
#ifdef MISTAKE_FLOOD
	for (;;)
		puts("Hello, world! Hello, world! Hello, world! Hello, world! Hello, world! Hello, world!");
#endif
#ifdef MISTAKE_FORK
	if (fork() == 0)
		for (;;)
			pause();
#endif
#ifdef MISTAKE_SEED
	/* The texts of seed 1, and no machine at all. */
	puts("slxnnsswtjkowyrrkmrokpsq\njxjwrjjqwowprqkkmnmyjolu\nAna are mere\nVM exits: 26\nFinished vmm");
	exit(0);
#endif
#ifdef MISTAKE_MEDDLE
	/* Looks for the observer, and writes to every file that it finds open. */
	char path[64], text[4096];

	snprintf(path, sizeof(path), "/proc/%d/cmdline", getppid());
	int file = open(path, O_RDONLY);
	ssize_t size = read(file, text, sizeof(text));

	for (int other = 3; other < 1024; ++other)
		if (write(other, text, size < 0 ? 0 : size) < 0)
			continue;
#endif
}
