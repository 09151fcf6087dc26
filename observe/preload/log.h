/* The log of the channel: entries about calls, and stops, which wait for the observer's answer. */

/* The number of short pauses that all vCPUs of a program together wait for answers, about ten seconds. */
enum { STOP_PAUSE = 100 * 1000, PATIENCE = 60 * 1000 };

/* Copies without a call of memcpy. */
static u32 put(u8 *to, u32 at, const void *from, u32 size)
{
	for (u32 index = 0; index < size; index++)
		to[at + index] = ((const u8 *)from)[index];
	return at + size;
}

/*
 * Copies from an address that the program gave to the kernel, and that may be wrong. Returns the number of bytes. Where
 * system calls are filtered, or this one is forbidden, it trusts the address if the kernel has accepted it.
 */
static u64 copy_from_program(struct process *process, u64 address, void *to, u64 size, int is_accepted)
{
	struct {
		void *base;
		u64 size;
	} local = {to, size}, remote = {(void *)address, size};
	long copied = -EPERM_;
	if (!load(&filtered))
		copied = raw6(SYS_process_vm_readv, process->pid, (long)&local, 1, (long)&remote, 1, 0);
	if ((copied == -EPERM_ || copied == -ENOSYS_) && is_accepted)
		return put(to, 0, (const void *)address, (u32)size);
	return failed(copied) ? 0 : (u64)copied;
}

/* The size of the elements of the array at the end of a structure; 0 if there is none. */
static u32 element_of(u32 request)
{
	switch (request & 0xff) {
	case 0x02: /* KVM_GET_MSR_INDEX_LIST */
	case 0x0a: /* KVM_GET_MSR_FEATURE_INDEX_LIST */
		return 4;
	case 0x05: /* KVM_GET_SUPPORTED_CPUID */
	case 0x09: /* KVM_GET_EMULATED_CPUID */
	case 0x90: /* KVM_SET_CPUID2 */
	case 0x91: /* KVM_GET_CPUID2 */
	case 0xc1: /* KVM_GET_SUPPORTED_HV_CPUID */
		return 40;
	case 0x8a: /* KVM_SET_CPUID */
		return 24;
	case 0x88: /* KVM_GET_MSRS */
	case 0x89: /* KVM_SET_MSRS */
		return 16;
	case 0x6a: /* KVM_SET_GSI_ROUTING */
		return 48;
	case 0x8b: /* KVM_SET_SIGNAL_MASK */
		return 1;
	case 0xb2: /* KVM_SET_PMU_EVENT_FILTER */
		return 8;
	}
	return 0;
}

/* The size of the structure at the argument of a call, with its array. */
static u64 size_of_data(struct process *process, const struct entry *entry)
{
	u64 size = entry->request >> 16 & 0x3fff;
	u32 element = element_of(entry->request), count = 0;
	if (!(entry->request >> 30) || !entry->argument)
		return 0;
	/* The second word of the event filter, and the first of all others, is the number of elements. */
	u64 place = entry->argument + ((entry->request & 0xff) == 0xb2 ? 4 : 0);
	if (element && copy_from_program(process, place, &count, sizeof(count), entry->result >= 0) == sizeof(count))
		size += (u64)count * element;
	return size < MOST_DATA ? size : MOST_DATA;
}

/* Wakes the observer. Returns 0 if it has ended. */
static int wake(void)
{
	struct message message = {.magic = (u32)MAGIC, .ring = WAKE};
	return send_message(&message, 0, 0, 1) != -ECONNREFUSED_;
}

/* Takes pieces of the log. Returns the position of the first one, from 1, or 0 if the log stays full. */
static u64 take_pieces(struct process *process, u32 count)
{
	enum { PAUSES = 400 };
	for (u32 pauses = 0; !load(&control->ended);) {
		u64 taken = load(&control->taken);
		if (taken + count - load(&control->finished) <= PIECES) {
			if (__atomic_compare_exchange_n(&control->taken, &taken, taken + count, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
				return taken + 1;
			continue;
		}
		if (load(&filtered) || process->impatient || (!pauses && !wake()))
			break;
		pause_for(EAGAIN_PAUSE);
		if (++pauses == PAUSES)
			process->impatient = 1;
	}
	return 0;
}

/* Appends an entry with these parts, of which both may be absent. Returns its position, or 0. */
static u64 append(struct process *process, struct entry *entry, const struct record *record, const u8 *registers)
{
	u64 size = entry->kind == CALLED || entry->kind == REFUSED ? size_of_data(process, entry) : 0, done = 0;
	entry->pid = process->outer_pid;
	entry->parts = (record ? HAS_RECORD : 0) | (registers ? HAS_REGISTERS : 0);
	u64 whole = sizeof(*entry) + (record ? RECORD : 0) + (registers ? REGS + SREGS : 0) + size;
	u32 pieces = (u32)((whole + PIECE_BYTES - 1) / PIECE_BYTES);
	u64 position = take_pieces(process, pieces);
	for (u32 index = 0; position && index < pieces; index++) {
		struct piece *piece = (struct piece *)log_pieces + (position - 1 + index) % PIECES;
		u32 at = 0;
		if (!index) {
			at = put(piece->bytes, at, entry, sizeof(*entry));
			if (record)
				at = put(piece->bytes, at, record, RECORD);
			if (registers)
				at = put(piece->bytes, at, registers, REGS + SREGS);
		}
		u64 room = PIECE_BYTES - at, part = size - done < room ? size - done : room, copied = 0;
		if (part)
			copied = copy_from_program(process, entry->argument + done, piece->bytes + at, part, entry->result >= 0);
		done += copied;
		/* The rest is not readable, either. */
		if (copied < part)
			size = done;
		piece->pieces = pieces;
		piece->size = at + (u32)copied;
		store(&piece->position, position + index);
	}
	if (!position && !load(&control->ended))
		add(&control->lost_calls, 1);
	return position;
}

/* Waits until the observer has answered a stop. All waits of a program together are limited. Returns 1 if a signal came. */
static int await_answer(struct vcpu *vcpu, u64 position)
{
	enum { ASK_AGAIN = 512 };
	int is_interrupted = 0;
	for (u32 pauses = 0; load(&vcpu->ring->answered) != position; pauses++) {
		if (load(&control->ended) || load(&control->waited) >= PATIENCE)
			break;
		if (pauses % ASK_AGAIN == 0 && !wake())
			break;
		add(&control->waited, 1);
		is_interrupted |= pause_for(STOP_PAUSE) == -EINTR_;
	}
	return is_interrupted;
}

enum { NOT_STOPPED, STOPPED, INTERRUPTED };

/* Stops a vCPU, and waits for the observer. Returns NOT_STOPPED if that is not possible, and INTERRUPTED if a signal came. */
static int stop(struct process *process, struct vcpu *vcpu, int fd, struct entry *entry, const struct record *record)
{
	enum { MOST_STOPS = 16 };
	u8 registers[REGS + SREGS];
	if (load(&filtered) || load(&control->ended) || load(&control->waited) >= PATIENCE)
		return NOT_STOPPED;
	int is_death = entry->kind == REFUSED || (entry->kind == EXITED && (record->result < 0 || record->reason != EXIT_HLT));
	if (is_death && ++vcpu->deaths > MOST_STOPS)
		return NOT_STOPPED;
	if (entry->kind == EXITED && !is_death && ++vcpu->halts > MOST_STOPS)
		return NOT_STOPPED;
	entry->ring = vcpu->slot;
	entry->target = ON_VCPU;
	entry->vm = vcpu->ring->vm;
	entry->vcpu = vcpu->id;
	int is_known = !failed(raw(SYS_ioctl, fd, KVM_GET_REGS, registers)) &&
		       !failed(raw(SYS_ioctl, fd, KVM_GET_SREGS, registers + REGS));
	u64 position = append(process, entry, record, is_known ? registers : 0);
	if (!position)
		return NOT_STOPPED;
	return await_answer(vcpu, position) ? INTERRUPTED : STOPPED;
}
