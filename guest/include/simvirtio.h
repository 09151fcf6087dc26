/*
 * SIMVIRTIO for guests in C, with the names of the SO2 assignment. The code is freestanding and needs no library.
 *
 * docs/abi.md, section 4, is the specification. The assignment's `device_t` contradicts its configuration table. By
 * default the device has the table, and so has `device_t` in this file. For a device with `--layout struct`, define
 * SIMVIRTIO_STRUCT before you include this file.
 */
#ifndef SIMVIRTIO_H
#define SIMVIRTIO_H

#include <stdint.h>

/* The value of `magic`: "virt" as a little-endian word. */
#define MAGIC_VALUE 0x74726976

/* Values of device_status. DEVICE_BROKEN: the driver broke the protocol, and the device has stopped. */
#define DEVICE_RESET 0x0
#define DEVICE_CONFIG 0x2
#define DEVICE_READY 0x4
#define DEVICE_BROKEN 0x40

/* Values of driver_status. */
#define DRIVER_ACK 0x0
#define DRIVER 0x2
#define DRIVER_OK 0x4
/* The assignment's value. It does not fit into the 8 bits of driver_status (docs/abi.md, section 4.1). */
#define DRIVER_RESET 0x8000

/* Bit of q1_ctl: this driver reads RX. The doorbell and polling transports deliver input only if it is set. */
#define SIMVIRTIO_READS 0x1
/* The byte that ends the input on the RX queue: ASCII EOT. */
#define SIMVIRTIO_END_OF_INPUT 0x4

/* Guest physical addresses. */
#define SIMVIRTIO_RESULT 0x400
#define SIMVIRTIO_DEVICE_TABLE 0x1000A
#define SIMVIRTIO_TX_BUFFER 0x11000
#define SIMVIRTIO_RX_BUFFER 0x12000
#define SIMVIRTIO_WINDOW 0x100000
/* With --transport doorbell, a 4-byte store of a queue's number (0: TX, 1: RX) makes the device look at the window. */
#define SIMVIRTIO_DOORBELL 0x101000
#define SIMVIRTIO_TX_CONTROL (SIMVIRTIO_WINDOW + 0x10)
#define SIMVIRTIO_RX_CONTROL (SIMVIRTIO_WINDOW + 0x18)

typedef uint8_t q_elem_t;

typedef struct queue_control {
	/* Index of the next free slot. The producer owns it. */
	uint32_t head;
	/* Index of the next element to take. The consumer owns it. */
	uint32_t tail;
} queue_control_t;

typedef struct simqueue {
	volatile queue_control_t *q_ctrl;
	/* Length of the buffer in elements. The queue holds one less. */
	unsigned maxlen;
	q_elem_t *buffer;
} simqueue_t;

typedef struct __attribute__((packed)) device {
	uint32_t magic;
#ifdef SIMVIRTIO_STRUCT
	uint8_t device_status;
	uint8_t driver_status;
	uint8_t max_queue_len;
	uint8_t reserved;
#else
	uint16_t max_queue_len;
	uint8_t device_status;
	uint8_t driver_status;
#endif
	uint8_t queue_selector;
	uint8_t q0_ctl;
	uint8_t q1_ctl;
} device_t;

typedef struct device_table {
	uint16_t count;
	/* At offset 8 in 32-bit code too. */
	uint64_t device_addresses[10] __attribute__((aligned(8)));
} device_table_t;

_Static_assert(sizeof(device_t) == 11, "device_t ends where the configuration table ends");
_Static_assert(sizeof(queue_control_t) == 8, "a queue control is two words");
_Static_assert(__builtin_offsetof(device_table_t, device_addresses) == 8, "the addresses start at +8");

/* Returns the device's configuration table. */
static inline volatile device_t *simvirtio_device(void)
{
	return (volatile device_t *)SIMVIRTIO_WINDOW;
}

/* Returns the number of configured devices. */
static inline uint16_t simvirtio_device_count(void)
{
	return *(volatile uint16_t *)SIMVIRTIO_DEVICE_TABLE;
}

/* Returns the address of configured device number `i`, which must be below the count. The entries are not aligned. */
static inline uint64_t simvirtio_device_address(unsigned i)
{
	const volatile uint8_t *entry = (const volatile uint8_t *)(uintptr_t)(SIMVIRTIO_DEVICE_TABLE + 8 + 8 * i);
	uint64_t address = 0;

	for (int byte = 7; byte >= 0; --byte)
		address = address << 8 | entry[byte];
	return address;
}

/* Returns queue 0 (TX), from the driver to the device. `maxlen` is max_queue_len. */
static inline simqueue_t simvirtio_tx(unsigned maxlen)
{
	simqueue_t q = { (volatile queue_control_t *)SIMVIRTIO_TX_CONTROL, maxlen,
			 (q_elem_t *)SIMVIRTIO_TX_BUFFER };
	return q;
}

/* Returns queue 1 (RX), from the device to the driver. `maxlen` is max_queue_len. */
static inline simqueue_t simvirtio_rx(unsigned maxlen)
{
	simqueue_t q = { (volatile queue_control_t *)SIMVIRTIO_RX_CONTROL, maxlen,
			 (q_elem_t *)SIMVIRTIO_RX_BUFFER };
	return q;
}

/* Pushes `data`. Returns 0, or -1 if the queue is full. */
static inline int circ_bbuf_push(simqueue_t *q, q_elem_t data)
{
	uint32_t head = q->q_ctrl->head;
	uint32_t next = head + 1 == q->maxlen ? 0 : head + 1;

	if (next == q->q_ctrl->tail)
		return -1;
	((volatile q_elem_t *)q->buffer)[head] = data;
	/* The data must be stored before the new head. x86 keeps the order of stores; this stops the compiler. */
	__asm__ volatile("" : : : "memory");
	q->q_ctrl->head = next;
	return 0;
}

/* Takes the next element into `data`. Returns 0, or -1 if the queue is empty. */
static inline int circ_bbuf_pop(simqueue_t *q, q_elem_t *data)
{
	uint32_t tail = q->q_ctrl->tail;

	if (tail == q->q_ctrl->head)
		return -1;
	*data = ((volatile q_elem_t *)q->buffer)[tail];
	__asm__ volatile("" : : : "memory");
	q->q_ctrl->tail = tail + 1 == q->maxlen ? 0 : tail + 1;
	return 0;
}

#endif
