// Chapter 14: interrupts. Usage: ./vmm IMAGE
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in real mode. The guest prints bytes to port 0xE9.
// A byte that the guest writes to port 0x10, the bell, is a vector: the bell asks for an interrupt with this vector.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { RAM_SIZE = 0x100000, ENTRY = 0x1000, PRINT = 0xe9, BELL = 0x10, MOST_PENDING = 16 };

static uint8_t *ram;
static int vcpu;
static struct kvm_run *run;

// The vectors that wait for their interrupt, the oldest first.
static uint8_t pending[MOST_PENDING];
static int pending_count;

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
	size_t length = fread(ram + ENTRY, 1, RAM_SIZE - ENTRY, file);
	need(length > 0, path);
	fclose(file);
}

static void set_registers(void)
{
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = ENTRY, .rsp = 0xf000, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

// The bell: keeps a request for an interrupt until it can be delivered.
static void ring(uint8_t vector)
{
	if (pending_count == MOST_PENDING) {
		fprintf(stderr, "vmm: more than %d interrupts wait\n", MOST_PENDING);
		exit(1);
	}
	pending[pending_count++] = vector;
}

// Called before each KVM_RUN: injects the oldest interrupt that waits, if the guest takes one now.
static void deliver(void)
{
	//{
	if (pending_count > 0 && run->ready_for_interrupt_injection && run->if_flag) {
		struct kvm_interrupt interrupt = { .irq = pending[0] };
		need(ioctl(vcpu, KVM_INTERRUPT, &interrupt) == 0, "KVM_INTERRUPT");
		pending_count--;
		for (int i = 0; i < pending_count; i++)
			pending[i] = pending[i + 1];
	}
	run->request_interrupt_window = pending_count > 0;
	//= // TODO 1: If a vector waits, and run->ready_for_interrupt_injection and run->if_flag are not 0, give pending[0]
	//= // to the guest with ioctl(vcpu, KVM_INTERRUPT, &(struct kvm_interrupt){ .irq = ... }), and remove it from the array.
	//= // TODO 2: Set run->request_interrupt_window to 1 if vectors still wait, and otherwise to 0.
	//}
}

// Says if a guest that has executed HLT is at its end: no interrupt can wake it.
static int is_end(void)
{
	//{
	return pending_count == 0 || !run->if_flag;
	//= // TODO 3: A vector that waits wakes the guest, if the guest's interrupt flag (run->if_flag) is 1.
	//= return 1;
	//}
}

static void port_write(uint16_t port, uint8_t value)
{
	if (port == PRINT)
		putchar(value);
	else if (port == BELL)
		ring(value);
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
	set_registers();
	for (;;) {
		deliver();
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.direction == KVM_EXIT_IO_OUT && run->io.size == 1)
				for (uint32_t i = 0; i < run->io.count; i++)
					port_write(run->io.port, ((uint8_t *)run)[run->io.data_offset + i]);
			break;
		//{
		case KVM_EXIT_IRQ_WINDOW_OPEN:
			break;
		//= // TODO 4: KVM_EXIT_IRQ_WINDOW_OPEN means that the guest takes an interrupt now. There is nothing to do for it
		//= // but to go on: deliver() is called before the next KVM_RUN.
		//}
		case KVM_EXIT_HLT:
			if (is_end())
				return 0;
			break;
		default:
			fprintf(stderr, "vmm: unexpected exit, reason %u\n", run->exit_reason);
			return 1;
		}
	}
}
