/*
 * The bare poller: the machine of the polling echo in `vmm compare`, in ring 3, made with plain ioctls. The device is a
 * loop. It runs the same image as `vmm compare`.
 *
 *   cc -O2 -pthread -o echo echo.c && ./echo IMAGE ECHOES
 *
 * Prints four numbers: the median and the mean round trip in nanoseconds, and the CPU seconds of the vCPU thread and of
 * the device thread. The device implements only the part of SIMVIRTIO that this image uses (docs/abi.md, section 4),
 * and checks nothing. docs/compare.md describes the parameters and the results of the image.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define RAM_SIZE 0x100000ul
#define WINDOW 0x100000ul
#define TABLES 0xfffc0000ul
#define PAGE 0x1000ul
#define QUEUE 256u

static uint8_t *ram, *window, *tables;
static volatile int over;
static double device_seconds;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint8_t *slot(int vm, uint32_t number, uint64_t gpa, uint64_t size)
{
	uint8_t *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		die("mmap");
	struct kvm_userspace_memory_region region = {
		.slot = number, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uint64_t)at,
	};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		die("KVM_SET_USER_MEMORY_REGION");
	return at;
}

static double thread_seconds(void)
{
	struct timespec time;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
	return time.tv_sec + time.tv_nsec * 1e-9;
}

static uint32_t load(uint64_t offset)
{
	return __atomic_load_n((uint32_t *)(window + offset), __ATOMIC_ACQUIRE);
}

static void store(uint64_t offset, uint32_t value)
{
	__atomic_store_n((uint32_t *)(window + offset), value, __ATOMIC_RELEASE);
}

static void status(uint8_t value)
{
	__atomic_store_n(window + 6, value, __ATOMIC_RELEASE);
}

/* The device thread: handles commands until the driver status is OK, then echoes each byte. */
static void *poll_window(void *unused)
{
	uint32_t tail = 0, rx_head = 0;
	int ready = 0;
	while (!over) {
		uint32_t head = load(0x10);
		if (!ready && window[7] == 4) {
			ready = 1;
			status(4);
		}
		if (head == tail) {
			__builtin_ia32_pause();
			continue;
		}
		uint8_t byte = ram[0x11000 + tail];
		tail = (tail + 1) % QUEUE;
		if (ready) {
			ram[0x12000 + rx_head] = byte;
			rx_head = (rx_head + 1) % QUEUE;
			store(0x14, tail);
			store(0x18, rx_head);
			continue;
		}
		if (byte == 'C')
			status(2);
		store(0x14, tail);
	}
	device_seconds = thread_seconds();
	return unused;
}

/* Sets the vCPU to long mode in ring 3: docs/abi.md, section 1. */
static void enter(int vcpu)
{
	uint64_t *gdt = (uint64_t *)tables, *map = (uint64_t *)(tables + PAGE);
	uint64_t gdt_words[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00affb000000ffff, 0x00cff3000000ffff,
				 0xff008bfc70002068, 0 };
	memcpy(gdt, gdt_words, sizeof gdt_words);
	map[0] = (TABLES + 2 * PAGE) | 7;
	for (uint64_t gib = 0; gib < 4; gib++)
		map[512 + gib] = (TABLES + (3 + gib) * PAGE) | 7;
	for (uint64_t page = 0; page < 4 * 512; page++)
		map[1024 + page] = page << 21 | 0x87;
	uint8_t *task = tables + 7 * PAGE;
	task[0x66] = 0x68;
	task[0x68 + 8192] = 0xff;

	struct kvm_sregs sregs;
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		die("KVM_GET_SREGS");
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 0x1b, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 0x23, .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1, .g = 1,
	};
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.tr = (struct kvm_segment){
		.base = TABLES + 7 * PAGE, .limit = 0x2068, .selector = 0x28, .type = 11, .present = 1,
	};
	sregs.gdt = (struct kvm_dtable){ .base = TABLES, .limit = 7 * 8 - 1 };
	sregs.idt = (struct kvm_dtable){ 0 };
	sregs.cr0 = 0x80050033;
	sregs.cr3 = TABLES + PAGE;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		die("KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = 0x1000, .rsp = RAM_SIZE, .rflags = 0x3002, .rsi = 1 };
	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		die("KVM_SET_REGS");
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

/* Creates the VM with its memory. Returns the vCPU, and maps its kvm_run. */
static int make_machine(struct kvm_run **run)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		die("KVM_CREATE_VM");
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul);
	ram = slot(vm, 0, 0, RAM_SIZE);
	window = slot(vm, 1, WINDOW, PAGE);
	tables = slot(vm, 2, TABLES, 10 * PAGE);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		die("KVM_CREATE_VCPU");
	*run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (*run == MAP_FAILED)
		die("mmap of the vCPU");
	return vcpu;
}

static void load_image(const char *path, uint32_t echoes)
{
	int image = open(path, O_RDONLY);
	if (image < 0 || read(image, ram + 0x1000, 0xf000) <= 0)
		die(path);
	uint32_t parameters[] = { 0, 0, echoes, 1 };
	memcpy(ram + 0x13000, parameters, sizeof parameters);
	for (unsigned i = 0; i < 0x2000; i++)
		ram[0x94000 + i] = i % 251;
	memcpy(window, "virt\0\1", 6);
}

static void print_times(int vcpu, uint32_t echoes, double vcpu_seconds)
{
	int khz = ioctl(vcpu, KVM_GET_TSC_KHZ, 0);
	if (khz <= 0)
		die("KVM_GET_TSC_KHZ");
	uint32_t *ticks = (uint32_t *)(ram + 0x14000);
	double sum = 0;
	for (uint32_t i = 0; i < echoes; i++)
		sum += ticks[i];
	qsort(ticks, echoes, sizeof *ticks, by_size);
	printf("%.1f %.1f %.6f %.6f\n", ticks[(echoes - 1) / 2] * 1e6 / khz, sum * 1e6 / khz / echoes, vcpu_seconds,
	       device_seconds);
}

int main(int argc, char **argv)
{
	uint32_t echoes = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	if (echoes < 1 || echoes > 100000) {
		fprintf(stderr, "usage: echo IMAGE ECHOES\n");
		return 2;
	}
	/* The time limit of the program: 120 s. */
	alarm(120);
	struct kvm_run *run;
	int vcpu = make_machine(&run);
	load_image(argv[1], echoes);
	enter(vcpu);

	pthread_t device;
	if (pthread_create(&device, NULL, poll_window, NULL))
		die("pthread_create");
	double before = thread_seconds();
	if (ioctl(vcpu, KVM_RUN, 0))
		die("KVM_RUN");
	double vcpu_seconds = thread_seconds() - before;
	over = 1;
	pthread_join(device, NULL);
	uint8_t code = *((uint8_t *)run + run->io.data_offset);
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0xf4 || code != 0) {
		fprintf(stderr, "unexpected end of the guest: exit reason %u, exit code %u\n", run->exit_reason, code);
		return 1;
	}
	print_times(vcpu, echoes, vcpu_seconds);
	return 0;
}
