// ANCHOR: all
// Three ways in which a guest can hand 4096 bytes to its VMM: how many exits, and how much time?
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum { RAM_SIZE = 0x10000, ENTRY = 0x1000, BYTES = 4096, ROUNDS = 9 };

static int vcpu;
static uint8_t *ram;
static struct kvm_run *run;

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void create_machine(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "kvm_run");
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
}

static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

// ANCHOR: guests
// mov si, 0x2000; mov cx, 4096; next: lodsb; out 0xe9, al; loop next; hlt
static const uint8_t bytes[] = { 0xbe, 0x00, 0x20, 0xb9, 0x00, 0x10, 0xac, 0xe6, 0xe9, 0xe2, 0xfb, 0xf4 };
// mov si, 0x2000; mov cx, 4096; mov dx, 0xe9; rep outsb; hlt
static const uint8_t string[] = { 0xbe, 0x00, 0x20, 0xb9, 0x00, 0x10, 0xba, 0xe9, 0x00, 0xf3, 0x6e, 0xf4 };
// mov ax, 0x2000; out 0x30, ax; mov ax, 4096; out 0x34, ax; hlt
static const uint8_t block[] = { 0xb8, 0x00, 0x20, 0xe7, 0x30, 0xb8, 0x00, 0x10, 0xe7, 0x34, 0xf4 };
// ANCHOR_END: guests

// The VMM keeps what it gets: the terminal is not measured.
static uint8_t got[BYTES];
static unsigned count;

static void port_write(uint16_t port, const uint8_t *data)
{
	static uint16_t address;
	uint16_t value;
	memcpy(&value, data, sizeof(value));
	if (port == 0xe9 && count < BYTES)
		got[count++] = *data;
	else if (port == 0x30)
		address = value;
	else if (port == 0x34 && value <= BYTES && address <= RAM_SIZE - BYTES) {
		memcpy(got, ram + address, value);
		count = value;
	}
}

// Runs a guest to its HLT, and returns the number of its exits.
static unsigned run_guest(const uint8_t *code, size_t size)
{
	struct kvm_regs regs = { .rip = ENTRY, .rflags = 2 };
	memcpy(ram + ENTRY, code, size);
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
	count = 0;
	for (unsigned exits = 1;; exits++) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		if (run->exit_reason == KVM_EXIT_HLT)
			return exits;
		need(run->exit_reason == KVM_EXIT_IO, "unexpected exit");
		for (uint32_t i = 0; i < run->io.count; i++)
			port_write(run->io.port, (uint8_t *)run + run->io.data_offset + i * run->io.size);
	}
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static void measure(const char *way, const uint8_t *code, size_t size)
{
	uint64_t times[ROUNDS];
	unsigned exits = 0;
	for (int i = 0; i < ROUNDS; i++) {
		uint64_t start = now();
		exits = run_guest(code, size);
		times[i] = now() - start;
		need(count == BYTES && memcmp(got, ram + 0x2000, BYTES) == 0, "wrong bytes");
	}
	qsort(times, ROUNDS, sizeof(*times), compare);
	printf("%-8s %5u exits   shortest %9.1f us   median %9.1f us\n", way, exits, times[0] / 1e3, times[ROUNDS / 2] / 1e3);
}

int main(void)
{
	create_machine();
	for (int i = 0; i < BYTES; i++)
		ram[0x2000 + i] = i * 7;
	measure("bytes", bytes, sizeof(bytes));
	measure("string", string, sizeof(string));
	measure("block", block, sizeof(block));
	return 0;
}
// ANCHOR_END: all
