/*
 * A driver over simvirtio.h: the handshake, and bytes out and in. 64-bit code; ends by the exit port where the
 * device does not answer as it should.
 */
#ifndef SIMVIRTIO_DRIVER_H
#define SIMVIRTIO_DRIVER_H

#include "simvirtio.h"

#define EXIT_PORT 0xF4

static inline void give_up(uint8_t code)
{
	__asm__ volatile("outb %0, %w1" : : "a"(code), "Nd"((uint16_t)EXIT_PORT));
	for (;;)
		__asm__ volatile("hlt");
}

/* Puts a byte into the TX queue, waiting while it is full. */
static inline void push(simqueue_t *tx, q_elem_t data)
{
	while (circ_bbuf_push(tx, data))
		__asm__ volatile("pause");
}

/* Takes a byte out of the RX queue, waiting while it is empty. */
static inline q_elem_t pop(simqueue_t *rx)
{
	q_elem_t data;

	while (circ_bbuf_pop(rx, &data))
		__asm__ volatile("pause");
	return data;
}

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

/* Takes the device through the handshake, and fills in its TX queue. */
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

/* Leaves 42 where it is looked for, and halts. */
static inline void __attribute__((noreturn)) done(void)
{
	*(volatile uint64_t *)SIMVIRTIO_RESULT = 42;
	for (;;)
		__asm__ volatile("hlt" : : "a"(42) : "memory");
}

#endif
