/*
 * The SIMVIRTIO driver in C, with the assignment's names: steps 5 to 13.
 *
 * With ANNOUNCE_MAGIC it begins as the course's skeleton does, by writing the magic to port 0xE9.
 */
#include "simvirtio.h"

#define EXIT_PORT 0xF4

static void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %w1" : : "a"(value), "Nd"(port));
}

static void give_up(uint8_t code)
{
	__asm__ volatile("outb %0, %w1" : : "a"(code), "Nd"((uint16_t)EXIT_PORT));
	for (;;)
		__asm__ volatile("hlt");
}

static void push(simqueue_t *tx, q_elem_t data)
{
	while (circ_bbuf_push(tx, data))
		__asm__ volatile("pause");
}

static void wait_for(volatile device_t *device, uint8_t status)
{
	for (;;) {
		uint8_t shown = device->device_status;

		if (shown == status)
			return;
		if (shown == DEVICE_BROKEN)
			give_up(2);
		__asm__ volatile("pause");
	}
}

__attribute__((section(".start"), noreturn)) void _start(void)
{
	volatile device_t *device = simvirtio_device();

#ifdef ANNOUNCE_MAGIC
	outl(0xE9, MAGIC_VALUE);
#else
	(void)outl;
#endif
	if (device->magic != MAGIC_VALUE)
		give_up(1);
	simqueue_t tx = simvirtio_tx(device->max_queue_len);

	push(&tx, 'R');
	while (tx.q_ctrl->tail != tx.q_ctrl->head)
		__asm__ volatile("pause");
	wait_for(device, DEVICE_RESET);
	device->driver_status = DRIVER_ACK;

	push(&tx, 'C');
	wait_for(device, DEVICE_CONFIG);
	if (simvirtio_device_count() != 1 || simvirtio_device_address(0) != SIMVIRTIO_WINDOW)
		give_up(3);
	device->driver_status = DRIVER;
	device->driver_status = DRIVER_OK;
	wait_for(device, DEVICE_READY);

	for (const char *p = "Ana are mere"; *p; ++p)
		push(&tx, *p);

	*(volatile uint64_t *)SIMVIRTIO_RESULT = 42;
	for (;;)
		__asm__ volatile("hlt" : : "a"(42) : "memory");
}
