/*
 * KeV's project 2 on Linux and KVM: a virtual machine monitor whose guests communicate by VM exits. README.md says which part
 * earns which points.
 *
 *   ./vmm kev-port|kev-ports|kev-strings|kev-mmio|kev-cpuid|kev-msr|kev-msr-fault
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define MEM_SIZE 0x100000
/* The guest is here, and begins at its first byte. */
#define GUEST_ADDRESS 0x1000
/* The guest leaves its result here, and in RAX. */
#define RESULT_ADDRESS 0x400
#define RESULT 42

/* The devices of the project. */
#define CONSOLE_PORT 0xe9
#define FIFO_PORT 0xbb
#define CONSTANT_PORT 3
#define CONSTANT 0x600dcafe
#define FIFO_MSR 0xabc
#define PRINTER_ADDRESS 0xcafe0000

/* The guests of the folder guests. The linker puts them into the program (guests/guests.S). */
struct guest {
	const char *name;
	const char *start;
	const char *end;
};
extern const struct guest guests[], guests_end[];

static int sys_fd, vm_fd, vcpu_fd;
static char *mem;
static struct kvm_run *kvm_run;

/* Ends the program unless a step has succeeded. */
static void need(bool good, const char *step)
{
	if (good)
		return;
	fprintf(stderr, "%s failed: %s\n", step, strerror(errno));
	exit(1);
}

/* A queue: what was pushed first is popped first. */
struct fifo {
	uint64_t elements[65536];
	unsigned int first, count;
};

/* Adds an element. It is lost if the queue is full. */
static void push(struct fifo *fifo, uint64_t element)
{
	if (fifo->count < 65536)
		fifo->elements[(fifo->first + fifo->count++) % 65536] = element;
}

/* Takes the oldest element. An empty queue gives all ones. */
static uint64_t pop(struct fifo *fifo)
{
	if (fifo->count == 0)
		return UINT64_MAX;
	uint64_t element = fifo->elements[fifo->first];

	fifo->first = (fifo->first + 1) % 65536;
	--fifo->count;
	return element;
}

static void create_vm(void)
{
	sys_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(sys_fd >= 0, "open /dev/kvm");
	need(ioctl(sys_fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "KVM_GET_API_VERSION");
	vm_fd = ioctl(sys_fd, KVM_CREATE_VM, 0);
	need(vm_fd >= 0, "KVM_CREATE_VM");
	need(ioctl(vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000) == 0, "KVM_SET_TSS_ADDR");
	mem = mmap(NULL, MEM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(mem != MAP_FAILED, "mmap");
	struct kvm_userspace_memory_region region = { .memory_size = MEM_SIZE, .userspace_addr = (uintptr_t)mem };

	need(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

static void create_vcpu(void)
{
	int size = ioctl(sys_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	need(size > 0, "KVM_GET_VCPU_MMAP_SIZE");
	vcpu_fd = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
	need(vcpu_fd >= 0, "KVM_CREATE_VCPU");
	kvm_run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	need(kvm_run != MAP_FAILED, "mmap of struct kvm_run");
}

/* Long mode. The page tables map the first 4 GiB to themselves. The GDT is for the handlers of exceptions. */
static void setup_long_mode(void)
{
	const uint64_t gdt[] = { 0, 0x00af9b000000ffff, 0x00cf93000000ffff };
	enum { GDT = 0x7000, PML4 = 0x8000, PDPT = 0x9000, PD = 0xa000 };
	struct kvm_segment segment = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_regs regs = { .rip = GUEST_ADDRESS, .rflags = 2, .rsp = MEM_SIZE };
	struct kvm_sregs sregs;

	memcpy(mem + GDT, gdt, sizeof(gdt));
	*(uint64_t *)(mem + PML4) = PDPT | 3;
	for (uint64_t n = 0; n < 4; ++n)
		((uint64_t *)(mem + PDPT))[n] = (PD + n * 4096) | 3;
	for (uint64_t n = 0; n < 4 * 512; ++n)
		((uint64_t *)(mem + PD))[n] = n << 21 | 0x83;
	need(ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;
	sregs.cr0 = 0x80000001;
	sregs.efer = 0x500;
	sregs.gdt.base = GDT;
	sregs.gdt.limit = sizeof(gdt) - 1;
	sregs.cs = segment;
	segment.selector = 16;
	segment.type = 3;
	segment.l = 0;
	segment.db = 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment;
	need(ioctl(vcpu_fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	need(ioctl(vcpu_fd, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

/* Decides what the instruction CPUID returns. */
static void set_cpuid(void)
{
	//{
	//= /*
	//=  * TODO 5: Allocate a struct kvm_cpuid2 with room for 256 entries, and set nent to 256. KVM_GET_SUPPORTED_CPUID on sys_fd
	//=  * fills it with what the host can do. In the entry whose function is 1, the upper 8 bits of ebx are the number of the
	//=  * processor: replace the host's by 0, the number of the vCPU. Set bit 31 of ecx: it says that there is a hypervisor.
	//=  * Then call KVM_SET_CPUID2 on vcpu_fd.
	//=  */
	struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 256 * sizeof(*cpuid->entries));

	need(cpuid, "calloc");
	cpuid->nent = 256;
	need(ioctl(sys_fd, KVM_GET_SUPPORTED_CPUID, cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");
	for (unsigned int n = 0; n < cpuid->nent; ++n) {
		if (cpuid->entries[n].function != 1)
			continue;
		cpuid->entries[n].ebx &= 0x00ffffff;
		cpuid->entries[n].ecx |= 1u << 31;
	}
	need(ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid) == 0, "KVM_SET_CPUID2");
	free(cpuid);
	//}
}

/* Asks KVM for an exit at each access to the MSRs FIFO_MSR and FIFO_MSR + 1. */
static void filter_msrs(void)
{
	//{
	//= /*
	//=  * TODO 6.1: Enable KVM_CAP_X86_USER_SPACE_MSR (KVM_ENABLE_CAP on vm_fd) with args[0] = KVM_MSR_EXIT_REASON_FILTER: an
	//=  * access that a filter denies is then an exit, and no exception. Then call KVM_X86_SET_MSR_FILTER on vm_fd. The filter
	//=  * has KVM_MSR_FILTER_DEFAULT_ALLOW in its flags. Its first range is for KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, and
	//=  * has 2 MSRs from FIFO_MSR on. Its bitmap has a bit for each: 0 denies. KVM reads 8 bytes of the bitmap.
	//=  */
	struct kvm_enable_cap cap = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER } };
	uint64_t bitmap = 0;
	struct kvm_msr_filter filter = {
		.flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
		.ranges[0] = {
			.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
			.base = FIFO_MSR,
			.nmsrs = 2,
			.bitmap = (uint8_t *)&bitmap,
		},
	};

	need(ioctl(vm_fd, KVM_ENABLE_CAP, &cap) == 0, "KVM_CAP_X86_USER_SPACE_MSR");
	need(ioctl(vm_fd, KVM_X86_SET_MSR_FILTER, &filter) == 0, "KVM_X86_SET_MSR_FILTER");
	//}
}

/* Handles an access of 1, 2 or 4 bytes to a port. 'data' has the bytes that the guest writes, or gets those that it reads. */
static void handle_port(uint16_t port, bool is_out, void *data, size_t size)
{
	/* A queue for each width. */
	static struct fifo fifos[3];
	struct fifo *fifo = &fifos[size / 2];
	const uint32_t constant = CONSTANT;
	uint64_t element = 0;

	if (!is_out)
		memset(data, 0xff, size);
	//{
	//= /* TODO 1: If the guest writes to CONSOLE_PORT, print the bytes with fwrite. */
	if (port == CONSOLE_PORT && is_out)
		fwrite(data, 1, size, stdout);
	//}
	//{
	//= /*
	//=  * TODO 2: FIFO_PORT is a queue: a write pushes its bytes into fifo as one element, and a read pops one. Use memcpy from
	//=  * and to 'element', which has room for all widths. CONSTANT_PORT can only be read: copy the first bytes of 'constant'.
	//=  */
	if (port == FIFO_PORT && is_out) {
		memcpy(&element, data, size);
		push(fifo, element);
	} else if (port == FIFO_PORT) {
		element = pop(fifo);
		memcpy(data, &element, size);
	} else if (port == CONSTANT_PORT && !is_out) {
		memcpy(data, &constant, size);
	}
	//}
}

static void handle_io(void)
{
	bool is_out = kvm_run->io.direction == KVM_EXIT_IO_OUT;
	char *data = (char *)kvm_run + kvm_run->io.data_offset;

	//{
	//= /*
	//=  * TODO 3: A string instruction, such as rep insb, can have several elements in one exit. Call handle_port() for each
	//=  * of the io.count elements. They stand one after the other, from data on, and each has io.size bytes.
	//=  */
	//= handle_port(kvm_run->io.port, is_out, data, kvm_run->io.size);
	for (uint32_t n = 0; n < kvm_run->io.count; ++n)
		handle_port(kvm_run->io.port, is_out, data + (size_t)n * kvm_run->io.size, kvm_run->io.size);
	//}
}

/* The registers of the printer, in the order of their addresses. */
static struct {
	uint64_t text;
	uint64_t length;
	int64_t result;
} printer;

/* Prints the text of the printer. Returns its length, or -EFAULT if it is not in the memory of the guest. */
static int64_t print_text(void)
{
	//{
	//= /*
	//=  * TODO 4.1: printer.text is the address of the text in the memory of the guest, and printer.length its length. The guest
	//=  * can write any numbers: check that the text begins and ends in the MEM_SIZE bytes of mem. Beware of an overflow in
	//=  * text + length.
	//=  */
	//= return -EFAULT;
	if (printer.length > MEM_SIZE || printer.text > MEM_SIZE - printer.length)
		return -EFAULT;
	fwrite(mem + printer.text, 1, printer.length, stdout);
	return printer.length;
	//}
}

static void handle_mmio(void)
{
	uint64_t offset = kvm_run->mmio.phys_addr - PRINTER_ADDRESS;
	size_t len = kvm_run->mmio.len;

	if (offset >= sizeof(printer) || len > sizeof(printer) - offset) {
		fprintf(stderr, "MMIO at 0x%llx, where nothing is\n", (unsigned long long)kvm_run->mmio.phys_addr);
		exit(1);
	}
	//{
	//= /*
	//=  * TODO 4.2: If mmio.is_write is 1, copy the len bytes of mmio.data into the printer, at this offset. If they reach
	//=  * the register 'result', call print_text(), and put what it returns into the register. If mmio.is_write is 0, copy len
	//=  * bytes of the printer to mmio.data: they are the value that the guest reads.
	//=  */
	if (kvm_run->mmio.is_write) {
		memcpy((char *)&printer + offset, kvm_run->mmio.data, len);
		if (offset + len > 16)
			printer.result = print_text();
	} else {
		memcpy(kvm_run->mmio.data, (char *)&printer + offset, len);
	}
	//}
}

/* Handles RDMSR or WRMSR. KVM sets msr.error to 0. */
static void handle_msr(bool is_write)
{
	static struct fifo fifo;

	//{
	//= /*
	//=  * TODO 6.2: If msr.index is FIFO_MSR, push msr.data, which the guest writes, or set it to what pop() returns, for
	//=  * the guest to read.
	//=  */
	if (kvm_run->msr.index == FIFO_MSR) {
		if (is_write)
			push(&fifo, kvm_run->msr.data);
		else
			kvm_run->msr.data = pop(&fifo);
		return;
	}
	//}
	//{
	//= /* TODO 7: All other MSRs do not exist. Set msr.error to 1: then KVM raises the exception #GP in the guest. */
	kvm_run->msr.error = 1;
	//}
}

/* Runs the guest until it halts. */
static void run(void)
{
	for (;;) {
		need(ioctl(vcpu_fd, KVM_RUN, 0) == 0, "KVM_RUN");
		switch (kvm_run->exit_reason) {
		case KVM_EXIT_HLT:
			return;
		case KVM_EXIT_IO:
			handle_io();
			break;
		case KVM_EXIT_MMIO:
			handle_mmio();
			break;
		case KVM_EXIT_X86_RDMSR:
			handle_msr(false);
			break;
		case KVM_EXIT_X86_WRMSR:
			handle_msr(true);
			break;
		default:
			fprintf(stderr, "unexpected exit: reason %u\n", kvm_run->exit_reason);
			exit(1);
		}
	}
}

/* Checks the result. Returns the exit status of the program. */
static int finish(void)
{
	uint64_t result = *(uint64_t *)(mem + RESULT_ADDRESS);
	struct kvm_regs regs;

	need(ioctl(vcpu_fd, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
	if (regs.rax != RESULT || result != RESULT) {
		fprintf(stderr, "the guest has found a mistake: RAX is %llu, and the value at 0x400 is %llu\n", regs.rax,
			(unsigned long long)result);
		return 1;
	}
	fprintf(stderr, "the guest has halted with 42\n");
	return 0;
}

int main(int argc, char **argv)
{
	for (const struct guest *guest = guests; argc == 2 && guest < guests_end; ++guest) {
		if (strcmp(argv[1], guest->name))
			continue;
		create_vm();
		create_vcpu();
		memcpy(mem + GUEST_ADDRESS, guest->start, guest->end - guest->start);
		setup_long_mode();
		set_cpuid();
		filter_msrs();
		run();
		return finish();
	}
	fprintf(stderr, "usage: %s GUEST\n", argv[0]);
	for (const struct guest *guest = guests; guest < guests_end; ++guest)
		fprintf(stderr, "  %s\n", guest->name);
	return 2;
}
