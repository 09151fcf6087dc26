// A multiboot 1 kernel for the timer of a PC: programs the PIT and the interrupt controllers. Without a command line it polls
// for the requests; with "interrupts" it takes five interrupts between halts. Then it halts for good.
// (Intel 8254 and 8259A data sheets.)
#include "kernel.h"

#define HEADER_MAGIC 0x1badb002
#define PIT 0x40
#define FIRST_PIC 0x20
#define SECOND_PIC 0xa0
#define VECTOR 0x20
// 100 Hz.
#define DIVISOR 11932
#define TICKS 5

__attribute__((section(".header"), used)) static const struct {
	uint32_t magic, flags, checksum;
} header = { HEADER_MAGIC, 0, -(uint32_t)HEADER_MAGIC };

static volatile uint32_t ticks;
static uint64_t idt[256];

static void set_up_controllers(void)
{
	// Initialization: the vectors, the cascade on input 2, 8086 mode. Then all inputs but the timer's are masked.
	outb(FIRST_PIC, 0x11);
	outb(SECOND_PIC, 0x11);
	outb(FIRST_PIC + 1, VECTOR);
	outb(SECOND_PIC + 1, VECTOR + 8);
	outb(FIRST_PIC + 1, 4);
	outb(SECOND_PIC + 1, 2);
	outb(FIRST_PIC + 1, 1);
	outb(SECOND_PIC + 1, 1);
	outb(FIRST_PIC + 1, 0xfe);
	outb(SECOND_PIC + 1, 0xff);
	// Counter 0: both bytes, mode 2.
	outb(PIT + 3, 0x34);
	outb(PIT, DIVISOR & 0xff);
	outb(PIT, DIVISOR >> 8);
}

__attribute__((used)) void tick(void)
{
	// On a busy host, several ticks can come before the loop looks again.
	if (ticks < TICKS)
		ticks++;
	outb(FIRST_PIC, 0x20);
}

void timer_interrupt(void);
__asm__(".globl timer_interrupt\ntimer_interrupt:\n\tpushal\n\tcall tick\n\tpopal\n\tiret\n");

static void wait_with_interrupts(void)
{
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) descriptor = { sizeof idt - 1, (uint32_t)(uintptr_t)idt };
	uint32_t handler = (uint32_t)(uintptr_t)timer_interrupt;
	uint16_t segment;

	__asm__("mov %%cs, %0" : "=r"(segment));
	idt[VECTOR] = (handler & 0xffff) | (uint64_t)segment << 16 | 0x8e0000000000 | (uint64_t)(handler >> 16) << 48;
	__asm__ volatile("lidt %0" : : "m"(descriptor));
	while (ticks < TICKS)
		__asm__ volatile("sti; hlt; cli");
}

// Polls the interrupt request register of the first controller, and takes each request with a poll command.
static void wait_without_interrupts(void)
{
	while (ticks < TICKS) {
		outb(FIRST_PIC, 0x0a);
		while (!(inb(FIRST_PIC) & 1))
			;
		outb(FIRST_PIC, 0x0c);
		// The answer is 0x80, with which input 0 asks. KVM of Linux 6.1 leaves out its highest bit.
		if ((inb(FIRST_PIC) & 0x7f) == 0)
			tick();
	}
}

void kernel_main(uint32_t magic, const uint32_t *from)
{
	const char *line = (const char *)(uintptr_t)from[4];

	(void)magic;
	set_up_controllers();
	if ((from[0] & 4) && *line == 'i')
		wait_with_interrupts();
	else
		wait_without_interrupts();
	print_named("ticks: ", ticks);
	print("\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}
