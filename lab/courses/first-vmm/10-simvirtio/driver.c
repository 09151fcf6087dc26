/*
 * Chapter 10: a SIMVIRTIO driver. It sends the text at 0x20000, which ends with a zero byte. If there is none, it sends
 * a text of its own.
 *
 *   make 10-simvirtio
 *   vmm 10-simvirtio/driver.bin@0x1000:64          the driver with the device of `vmm`
 *   10-simvirtio/vmm 10-simvirtio/driver.bin       the driver with your device
 *
 * It runs without a C library and without an operating system, in 64-bit mode. The program starts in _start.
 */
#include <stdint.h>

enum { MAGIC = 0x74726976, DEVICE_RESET = 0, DEVICE_CONFIG = 2, DEVICE_READY = 4, DRIVER_ACK = 0, DRIVER_OK = 4 };

/* The window. `volatile` makes the compiler load and store each time, and in this order: the device changes the fields. */
struct __attribute__((packed, aligned(8))) window {
	uint32_t magic;
	uint16_t max_queue_len;
	uint8_t device_status, driver_status, queue_selector, q0_ctl, q1_ctl;
	uint8_t reserved[5];
	uint32_t tx_head, tx_tail, rx_head, rx_tail;
};

#define WINDOW ((volatile struct window *)0x100000)
#define TX_BUFFER ((volatile uint8_t *)0x11000)
#define TEXT ((const char *)0x20000)

/* Ends the run: the processor halts. */
static void __attribute__((noreturn)) halt(void)
{
	for (;;)
		__asm__ volatile("hlt");
}

/* Sends one byte. Waits while the queue is full. */
static void push(uint8_t byte)
{
	uint32_t head = WINDOW->tx_head;

	//{
	//= /*
	//=  * TODO 1: `next` is the slot after `head`; after slot max_queue_len - 1 comes slot 0. Wait while `next` is tx_tail,
	//=  * because the queue is full then. Store the byte in slot `head` of TX_BUFFER, and after that `next` in tx_head.
	//=  */
	//= (void)byte;
	//= (void)head;
	uint32_t next = head + 1 == WINDOW->max_queue_len ? 0 : head + 1;

	while (WINDOW->tx_tail == next)
		__asm__ volatile("pause");
	TX_BUFFER[head] = byte;
	WINDOW->tx_head = next;
	//}
}

/* Waits until the device has taken all bytes, and shows this status. */
static void wait_for(uint8_t status)
{
	//{
	//= /* TODO 2: loop until tx_tail is tx_head and device_status is `status`. Both have to be loaded again each time. */
	//= (void)status;
	while (WINDOW->tx_tail != WINDOW->tx_head || WINDOW->device_status != status)
		__asm__ volatile("pause");
	//}
}

/* The file begins with this function, because the processor begins with the first byte of the file. */
void __attribute__((noreturn, section(".text.start"))) _start(void)
{
	const char *text = TEXT[0] ? TEXT : "Hello from the driver\n";

	if (WINDOW->magic != MAGIC)
		halt();
	//{
	//= /*
	//=  * TODO 3: the handshake. Send 'R' and wait for DEVICE_RESET. Store DRIVER_ACK in driver_status, send 'C' and wait for
	//=  * DEVICE_CONFIG. Store DRIVER_OK and wait for DEVICE_READY. Then send the bytes of `text` up to the zero byte.
	//=  */
	//= push('R');
	//= wait_for(DEVICE_RESET);
	//= (void)text;
	push('R');
	wait_for(DEVICE_RESET);
	WINDOW->driver_status = DRIVER_ACK;
	push('C');
	wait_for(DEVICE_CONFIG);
	WINDOW->driver_status = DRIVER_OK;
	wait_for(DEVICE_READY);
	while (*text)
		push(*text++);
	//}
	halt();
}
