// Chapter 19: security. Usage: ./vmm IMAGE
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. The guest prints bytes to port 0xE9 and ends
// with HLT. It has a device that copies memory: a 32-bit write to port 0x40 is the address of a request of 24 bytes.
//
// A guest is hostile. If it asks for something that is not allowed, the VMM says so on stderr, and ends with status 1.
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM_SIZE = 0x200000, ENTRY = 0x1000, STACK = 0x100000, PML4 = 0x1f0000, PDPT = 0x1f1000, PD = 0x1f2000 };
enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80 };
enum { COPY = 0x40, PRINT = 0xe9 };
// The most bytes that a guest may print, and the most seconds that it may run.
enum { OUTPUT_LIMIT = 0x400, TIME_LIMIT = 2 };

static uint8_t *ram;
static int vcpu;
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
}

static void load(const char *path)
{
	FILE *file = fopen(path, "rb");
	need(file != NULL, path);
	size_t length = fread(ram + ENTRY, 1, STACK - 0x1000 - ENTRY, file);
	need(length > 0, path);
	fclose(file);
}

// One table of each level: the first GiB is mapped one to one, with pages of 2 MiB.
static void set_page_tables(void)
{
	uint64_t *pml4 = (uint64_t *)(ram + PML4), *pdpt = (uint64_t *)(ram + PDPT), *pd = (uint64_t *)(ram + PD);

	pml4[0] = PDPT | WRITABLE | PRESENT;
	pdpt[0] = PD | WRITABLE | PRESENT;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = i << 21 | LARGE | WRITABLE | PRESENT;
}

static void set_registers(void)
{
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;
	sregs.cr0 = 0x80000011;
	sregs.efer = 1 << 8 | 1 << 10;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = ENTRY, .rsp = STACK, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

static void refuse(const char *why)
{
	fflush(stdout);
	fprintf(stderr, "vmm: the guest was ended: %s\n", why);
	exit(1);
}

// Says if a range is inside of the guest's memory.
static int is_inside(uint64_t address, uint64_t size)
{
	//{
	return size <= RAM_SIZE && address <= RAM_SIZE - size;
	//= // TODO 1: This sum can overflow: then a range that is far outside seems to be inside.
	//= return address + size <= RAM_SIZE;
	//}
}

// A request of the guest. It lies in the guest's memory, so it can change at any time.
struct request {
	uint64_t source, destination;
	uint32_t length;
	uint32_t is_done;
};

// Copies memory of the guest, and reports that in the request.
static void copy(uint32_t address)
{
	//{
	struct request request;

	if (!is_inside(address, sizeof(request)))
		refuse("a request is outside of its memory");
	memcpy(&request, ram + address, sizeof(request));
	__asm__ volatile("" ::: "memory"); // the compiler must not read the request again
	if (!is_inside(request.source, request.length) || !is_inside(request.destination, request.length))
		refuse("a request for memory that it does not have");
	memmove(ram + request.destination, ram + request.source, request.length);
	request.is_done = 1;
	memcpy(ram + address + offsetof(struct request, is_done), &request.is_done, sizeof(request.is_done));
	//= // TODO 2: This code trusts the guest. The request, its source and its destination may be outside of the memory: call
	//= // refuse() then. And the request may change while it is performed, because the destination may be the request itself:
	//= // copy it first, check the copy, and use nothing but the copy.
	//= volatile struct request *request = (struct request *)(ram + address);
	//= for (uint32_t i = 0; i < request->length; i++)
	//= 	ram[request->destination + i] = ram[request->source + i];
	//= request->is_done = 1;
	//= (void)is_inside, (void)refuse;
	//}
}

static void print(uint8_t byte)
{
	//{
	static unsigned printed;
	if (printed++ == OUTPUT_LIMIT)
		refuse("it has printed too much");
	//= // TODO 3: After OUTPUT_LIMIT bytes, call refuse() instead of printing more.
	//}
	putchar(byte);
}

// A guest that runs without an end: SIGALRM comes after TIME_LIMIT seconds.
static volatile sig_atomic_t is_late;
static void ring(int signal)
{
	(void)signal;
	//{
	is_late = 1;
	run->immediate_exit = 1;
	//= // TODO 4: Set is_late, and run->immediate_exit: KVM_RUN then returns at once with EINTR, also if the signal comes just
	//= // before KVM_RUN.
	//}
}

static void start_clock(void)
{
	struct sigaction action = { .sa_handler = ring };
	need(sigaction(SIGALRM, &action, NULL) == 0, "sigaction");
	alarm(TIME_LIMIT);
}

static void run_vcpu(void)
{
	//{
	int result = is_late ? -1 : ioctl(vcpu, KVM_RUN, 0);
	if (is_late)
		refuse("it has run too long");
	need(result == 0, "KVM_RUN");
	//= // TODO 5: If is_late is set, before or after KVM_RUN, call refuse(). EINTR is then no error.
	//= while (ioctl(vcpu, KVM_RUN, 0) != 0)
	//= 	need(errno == EINTR, "KVM_RUN");
	//}
}

static void port_write(uint16_t port, uint32_t value, unsigned size)
{
	if (port == PRINT && size == 1)
		print(value);
	else if (port == COPY && size == 4)
		copy(value);
}

static void port_access(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		uint32_t value = 0;
		if (run->io.direction == KVM_EXIT_IO_IN) {
			memset(data, 0, run->io.size);
			continue;
		}
		memcpy(&value, data, run->io.size);
		port_write(run->io.port, value, run->io.size);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: ./vmm IMAGE\n");
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	create_machine();
	load(argv[1]);
	set_page_tables();
	set_registers();
	start_clock();
	for (;;) {
		run_vcpu();
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			port_access();
			break;
		case KVM_EXIT_HLT:
			return 0;
		default:
			fprintf(stderr, "vmm: unexpected exit, reason %u\n", run->exit_reason);
			return 2;
		}
	}
}
