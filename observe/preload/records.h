/* The records of the returns of KVM_RUN. */

static inline u64 word(const u8 *page, u32 offset)
{
	return *(const volatile u64 *)(page + offset);
}

/* Copies the first 16 bytes of the data of port I/O. */
static inline void copy_data(struct record *record, const u8 *page, u64 offset)
{
	if (offset <= MAPPED - 16) {
		record->details[2] = word(page, (u32)offset);
		record->details[3] = word(page, (u32)offset + 8);
	}
}

/* Completes the last record: the program enters the vCPU again, and has answered its exit. */
static inline void complete(struct vcpu *vcpu, const u8 *page, u64 now)
{
	struct record *record = &vcpu->records[(vcpu->noted - 1) % RECORDS];
	record->answered = now;
	if (record->result >= 0) {
		if (record->reason == EXIT_IO) {
			if (!(record->details[0] & 0xff)) {
				record->details[1] = record->details[2];
				copy_data(record, page, vcpu->data_offset);
			}
		} else if (record->reason == EXIT_MMIO) {
			if (!(record->details[2] >> 32 & 0xff)) {
				record->details[3] = record->details[1];
				record->details[1] = word(page, UNION + 8);
			}
		} else if (record->reason == EXIT_RDMSR || record->reason == EXIT_WRMSR) {
			record->details[0] = word(page, UNION);
			if (record->reason == EXIT_RDMSR)
				record->details[2] = word(page, UNION + 16);
		}
	}
	vcpu->open = 0;
	store(&vcpu->ring->done, vcpu->noted);
}

/* Notes the return of KVM_RUN. Returns true if the vCPU should stop. */
static inline int note(struct vcpu *vcpu, const u8 *page, u64 entered, u64 left, int result)
{
	struct record *record = &vcpu->records[vcpu->noted % RECORDS];
	u32 reason = *(const volatile u32 *)(page + REASON);
	record->entered = entered;
	record->left = left;
	record->answered = 0;
	record->result = result;
	record->reason = reason;
	record->details[0] = word(page, UNION);
	record->details[1] = word(page, UNION + 8);
	if (reason == EXIT_IO) {
		vcpu->data_offset = record->details[1];
		copy_data(record, page, vcpu->data_offset);
	} else {
		record->details[2] = word(page, UNION + 16);
		record->details[3] = word(page, UNION + 24);
	}
	vcpu->open = 1;
	store(&vcpu->ring->noted, ++vcpu->noted);
	return result < 0 || (reason < 64 && vcpu->stop_reasons >> reason & 1);
}

static inline int is_full(struct vcpu *vcpu)
{
	if (__builtin_expect(vcpu->noted - vcpu->read < RECORDS, 1))
		return 0;
	vcpu->read = load(&vcpu->ring->read);
	return vcpu->noted - vcpu->read >= RECORDS;
}

/*
 * Waits for the observer to make room, at most for a second. Returns 1 if a signal came: then KVM_RUN would have returned,
 * too.
 */
static __attribute__((noinline)) int wait_for_room(struct vcpu *vcpu)
{
	enum { PAUSE = 200 * 1000, PAUSES = 4000, SPINS = 2000 };
	for (int pauses = 0; pauses < PAUSES && !vcpu->impatient; pauses++) {
		if (load(&control->ended))
			return 0;
		/* A program that filters its system calls may not sleep. */
		for (int spins = 0; spins < SPINS && load(&filtered); spins++)
			__builtin_ia32_pause();
		if (!load(&filtered) && pause_for(PAUSE) == -EINTR_)
			return 1;
		if (!is_full(vcpu))
			return 0;
	}
	vcpu->impatient = 1;
	return 0;
}
