/* A queue of SIMVIRTIO: a ring buffer. The guest pushes into the TX queue (guests/simvirtio.S), and the VMM pops. */
#ifndef QUEUE_H
#define QUEUE_H

#include <stdint.h>

typedef uint8_t q_elem_t;

typedef struct queue_control {
	/* Index of the next free element in 'buffer'. The producer moves it. */
	uint32_t head;
	/* Index of the oldest element in 'buffer'. The consumer moves it. */
	uint32_t tail;
} queue_control_t;

typedef struct simqueue {
	/* The control words, in the window of the device. */
	volatile queue_control_t *q_ctrl;
	/* The number of elements of 'buffer'. */
	unsigned int maxlen;
	q_elem_t *buffer;
} simqueue_t;

/* Takes the oldest element of the queue. Returns 0, or -1 if the queue is empty. */
static inline int circ_bbuf_pop(simqueue_t *q, q_elem_t *data)
{
	//{
	//= /*
	//=  * TODO 3.1: The queue is empty if head is equal to tail. Otherwise copy the element at tail, and move tail to the
	//=  * next element; after the last one comes element 0. The guest can write any number into head and tail: treat a
	//=  * queue in which one of them is not below maxlen as empty. In task 4 the guest runs while this function does, so
	//=  * read head with __atomic_load_n (__ATOMIC_ACQUIRE), and write tail with __atomic_store_n (__ATOMIC_RELEASE).
	//=  */
	//= return -1;
	uint32_t head = __atomic_load_n(&q->q_ctrl->head, __ATOMIC_ACQUIRE);
	uint32_t tail = q->q_ctrl->tail;

	if (head == tail || head >= q->maxlen || tail >= q->maxlen)
		return -1;
	*data = q->buffer[tail];
	__atomic_store_n(&q->q_ctrl->tail, (tail + 1) % q->maxlen, __ATOMIC_RELEASE);
	return 0;
	//}
}

#endif
