// ANCHOR: all
// Interrupts through KVM's own interrupt controllers: ./14-irqchip 14-pic.bin
#include "14-machine.h"

// ANCHOR: pulse
// Raises the line of an interrupt, and lowers it again.
static void pulse(uint32_t line)
{
	struct kvm_irq_level level = { .irq = line, .level = 1 };
	need(ioctl(vm, KVM_IRQ_LINE, &level) == 0, "KVM_IRQ_LINE");
	level.level = 0;
	need(ioctl(vm, KVM_IRQ_LINE, &level) == 0, "KVM_IRQ_LINE");
}
// ANCHOR_END: pulse

int main(int argc, char **argv)
{
	need(argc == 2, "usage: 14-irqchip IMAGE");
	create_vm();
	// The controllers come before the vCPUs.
	need(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
	create_vcpu(argv[1]);
	// ANCHOR: loop
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		if (wrote(0xe9)) {
			putchar(byte());
		} else if (wrote(0x10)) {
			pulse(4);
		} else if (wrote(0xf4)) {
			return byte();
		} else {
			printf("exit reason %u\n", run->exit_reason);
			return 1;
		}
	}
	// ANCHOR_END: loop
}
// ANCHOR_END: all
