/* Returns its input in upper case, up to the end of the input. */
#include "simvirtio_driver.h"

__attribute__((section(".start"), noreturn)) void _start(void)
{
	volatile device_t *device = simvirtio_device();
	simqueue_t tx, rx;
	q_elem_t data;

	connect(device, &tx);
	rx = simvirtio_rx(tx.maxlen);
	device->q1_ctl = SIMVIRTIO_READS;
	while ((data = pop(&rx)) != SIMVIRTIO_END_OF_INPUT)
		push(&tx, data >= 'a' && data <= 'z' ? data - 'a' + 'A' : data);
	done();
}
