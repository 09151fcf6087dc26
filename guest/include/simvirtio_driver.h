/*
 * A driver on top of simvirtio.h: the handshake, output and input. It is 64-bit code. If the device breaks the
 * protocol, the driver ends the run through the exit port, with code 1 (no magic), 2 (device broken) or 3 (wrong
 * device table).
 */
#ifndef SIMVIRTIO_DRIVER_H
#define SIMVIRTIO_DRIVER_H

#include "simvirtio.h"

#define EXIT_PORT 0xF4

/* Ends the run with this code. */
static inline void give_up(uint8_t code)
{
	__asm__ volatile("outb %0, %w1" : : "a"(code), "Nd"((uint16_t)EXIT_PORT));
	for (;;)
		__asm__ volatile("hlt");
}

/* Pushes a byte on TX. Waits while the queue is full. */
static inline void push(simqueue_t *tx, q_elem_t data)
{
	while (circ_bbuf_push(tx, data))
		__asm__ volatile("pause");
}

/* Takes a byte from RX. Waits while the queue is empty. */
static inline q_elem_t pop(simqueue_t *rx)
{
	q_elem_t data;

	while (circ_bbuf_pop(rx, &data))
		__asm__ volatile("pause");
	return data;
}

/* Waits for this device status. */
static inline void wait_for(volatile device_t *device, uint8_t status)
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

/* Performs the handshake (docs/abi.md, section 4.5) and initializes `tx`. */
static inline void connect(volatile device_t *device, simqueue_t *tx)
{
	if (device->magic != MAGIC_VALUE)
		give_up(1);
	*tx = simvirtio_tx(device->max_queue_len);

	push(tx, 'R');
	while (tx->q_ctrl->tail != tx->q_ctrl->head)
		__asm__ volatile("pause");
	wait_for(device, DEVICE_RESET);
	device->driver_status = DRIVER_ACK;

	push(tx, 'C');
	wait_for(device, DEVICE_CONFIG);
	if (simvirtio_device_count() != 1 || simvirtio_device_address(0) != SIMVIRTIO_WINDOW)
		give_up(3);
	device->driver_status = DRIVER;
	device->driver_status = DRIVER_OK;
	wait_for(device, DEVICE_READY);
}

/* Leaves 42 in RAX and at 0x400, and halts. */
static inline void __attribute__((noreturn)) done(void)
{
	*(volatile uint64_t *)SIMVIRTIO_RESULT = 42;
	for (;;)
		__asm__ volatile("hlt" : : "a"(42) : "memory");
}

#endif
