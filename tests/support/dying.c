/*
 * A VMM whose guest dies, because of a mistake: gcc -o dying dying.c
 *
 *   dying MISTAKE
 *
 * The machine has 64 KiB of memory, tables for long mode in the first 16 KiB, and the guest at 0x8000. Without a mistake the
 * guest halts, and the status is 0. It is 1 if KVM refuses a call, and 3 after another exit. "again" runs the dead guest again
 * and again. "int10" calls a BIOS that is not there and then halts, "unanswered" reads 12 times where no memory is, and "loop"
 * never ends, in ring 3.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM = 0x10000, PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, ENTRY = 0x8000, STACK = 0xf000, OUTSIDE = 0x40000000 };
enum { CR0_PE = 1, CR4_PAE = 0x20, CR4_PCE = 0x100, EFER_LME = 0x100, EFER_LMA = 0x400, PRESENT = 3, LARGE = 0x83 };
#define CR0_PG 0x80000000u

static const char *mistake;

static int has(const char *name)
{
	return !strcmp(mistake, name);
}

/* Calls KVM, and ends the program if that fails. */
static int call(const char *name, int fd, unsigned long request, void *argument)
{
	int result = ioctl(fd, request, argument);
	if (result < 0) {
		perror(name);
		exit(1);
	}
	return result;
}
#define CALL(fd, request, argument) call(#request, fd, request, (void *)(argument))

/* The code of the guest. */
static void copy_guest(uint8_t *ram)
{
	static const uint8_t halt[] = {0xf4};                           /* hlt */
	static const uint8_t undefined[] = {0x90, 0x0f, 0x0b};          /* nop; ud2 */
	static const uint8_t vectors[] = {0x0f, 0x57, 0xc0, 0xf4};      /* xorps xmm0, xmm0; hlt */
	static const uint8_t wide[] = {0xb8, 0, 0, 0, 0x20, 0xff, 0xe0}; /* mov eax, 0x20000000; jmp rax */
	static const uint8_t far_store[] = {0xa2, 0, 0, 0, 0, 1, 0, 0, 0, 0xf4}; /* mov [0x100000000], al; hlt */
	static const uint8_t int10[] = {0x90, 0xcd, 0x10, 0xf4};        /* nop; int 0x10; hlt */
	static const uint8_t loop[] = {0xeb, 0xfe};                     /* jmp $ */
	/* mov ecx, 12; again: mov al, [0x10000]; loop again; hlt */
	static const uint8_t reads[] = {0xb9, 12, 0, 0, 0, 0x8a, 0x04, 0x25, 0, 0, 1, 0, 0xe2, 0xf7, 0xf4};
	if (has("zeros"))
		return;
	if (has("no-idt") || has("again") || has("l-and-d") || has("cs-type"))
		memcpy(ram + ENTRY, undefined, sizeof(undefined));
	else if (has("int10")) {
		memcpy(ram + ENTRY, int10, sizeof(int10));
		/* The empty vector leads to address 0, and zeroes are an instruction. */
		ram[0x7000] = 0xf4;
	} else if (has("loop"))
		memcpy(ram + ENTRY, loop, sizeof(loop));
	else if (has("unanswered"))
		memcpy(ram + ENTRY, reads, sizeof(reads));
	else if (has("osfxsr"))
		memcpy(ram + ENTRY, vectors, sizeof(vectors));
	else if (has("jump"))
		memcpy(ram + ENTRY, wide, sizeof(wide));
	else if (has("store"))
		memcpy(ram + ENTRY, far_store, sizeof(far_store));
	else
		memcpy(ram + ENTRY, halt, sizeof(halt));
}

/* An identity map of the first 2 MiB. */
static void write_tables(uint8_t *ram)
{
	uint64_t *pml4 = (uint64_t *)(ram + PML4), *pdpt = (uint64_t *)(ram + PDPT), *pd = (uint64_t *)(ram + PD);
	uint64_t user = has("loop") ? 4 : 0;
	pml4[0] = (has("pml4-outside") ? OUTSIDE : PDPT) | PRESENT | user;
	pdpt[0] = PD | PRESENT | user;
	pd[0] = has("no-ps") ? PRESENT : LARGE | user;
}

static void set_long_mode(struct kvm_sregs *sregs)
{
	struct kvm_segment segment = {.limit = 0xffffffff, .selector = 8, .present = 1, .type = 11, .s = 1, .l = 1, .g = 1};
	sregs->cr3 = has("cr3-outside") ? OUTSIDE : PML4;
	sregs->cr4 = has("no-pae") ? 0 : CR4_PAE;
	sregs->cr0 = CR0_PE | CR0_PG;
	sregs->efer = EFER_LME | EFER_LMA;
	if (has("osfxsr"))
		sregs->cr4 |= CR4_PCE;
	if (has("no-lma"))
		sregs->efer = EFER_LME;
	if (has("no-efer"))
		sregs->efer = 0;
	if (has("no-pg"))
		sregs->cr0 = CR0_PE;
	if (has("l-and-d"))
		segment.db = 1;
	sregs->cs = segment;
	if (has("cs-type"))
		sregs->cs.type = 1;
	segment.selector = 16;
	segment.type = 3;
	segment.l = segment.db = 0;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = segment;
	if (has("ss-dpl"))
		sregs->ss.dpl = 3;
	if (has("loop")) {
		sregs->cs.selector |= 3;
		sregs->ss.selector |= 3;
		sregs->cs.dpl = sregs->ss.dpl = 3;
	}
}

int main(int count, char **words)
{
	mistake = count > 1 ? words[1] : "none";
	int kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0) {
		perror("/dev/kvm");
		return 1;
	}
	int vm = CALL(kvm, KVM_CREATE_VM, 0);
	uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {.memory_size = RAM, .userspace_addr = (uint64_t)ram};
	if (!has("no-slot"))
		CALL(vm, KVM_SET_USER_MEMORY_REGION, &region);
	int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *run = mmap(NULL, CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	copy_guest(ram);
	if (!has("int10"))
		write_tables(ram);

	struct kvm_sregs sregs;
	CALL(vcpu, KVM_GET_SREGS, &sregs);
	if (has("real") || has("int10"))
		sregs.cs.base = sregs.cs.selector = 0;
	else if (!has("cs-not-zeroed"))
		set_long_mode(&sregs);
	CALL(vcpu, KVM_SET_SREGS, &sregs);
	struct kvm_regs regs = {.rip = ENTRY, .rsp = STACK, .rflags = 2};
	CALL(vcpu, KVM_SET_REGS, &regs);
	if (has("unmapped"))
		munmap(ram, RAM);

	for (int exits = 0; exits < 1000; exits++) {
		CALL(vcpu, KVM_RUN, 0);
		switch (run->exit_reason) {
		case KVM_EXIT_HLT:
			return 0;
		case KVM_EXIT_IO:
		case KVM_EXIT_MMIO:
			break;
		default:
			if (has("again") && exits < 100)
				break;
			printf("exit reason %u\n", run->exit_reason);
			return 3;
		}
	}
	printf("too many exits\n");
	return 4;
}
