/*
 * The device SIMVIRTIO. The guest sees these structures at fixed addresses. The assignment describes the configuration
 * space twice: this is the order of its table, which differs from that of its struct.
 */
#ifndef DEVICE_H
#define DEVICE_H

#include <stdint.h>
#include "queue.h"

#define MAGIC_VALUE 0x74726976

#define DEVICE_RESET 0x0
#define DEVICE_CONFIG 0x2
#define DEVICE_READY 0x4

#define DRIVER_ACK 0x0
#define DRIVER 0x2
#define DRIVER_OK 0x4

/* The places in guest physical memory. */
#define WINDOW_ADDRESS 0x100000
#define DEVICE_TABLE_ADDRESS 0x1000a
#define TX_BUFFER_ADDRESS 0x11000

/* The number of bytes in the buffer of a queue. */
#define QUEUE_LEN 64
#define MAX_DEVICES 10

/* The configuration space. The driver writes driver_status and the three fields after it. */
typedef struct __attribute__((packed)) device {
	uint32_t magic;
	uint16_t max_queue_len;
	uint8_t device_status;
	uint8_t driver_status;
	uint8_t queue_selector;
	uint8_t q0_ctl;
	uint8_t q1_ctl;
} device_t;

/* Everything at WINDOW_ADDRESS: the configuration space, and at offset 0x10 the control words of both queues. */
typedef struct window {
	device_t device;
	uint8_t reserved[5];
	queue_control_t tx;
	queue_control_t rx;
} window_t;

/* The device table, at DEVICE_TABLE_ADDRESS. The VMM adds the address of each device that has been configured. */
typedef struct device_table {
	uint16_t count;
	uint64_t device_addresses[MAX_DEVICES];
} device_table_t;

#endif
