/* Signals while a vCPU runs. */
static volatile sig_atomic_t alarms;
static sigjmp_buf back;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
	/* A call of another vCPU's would be as good: the handler uses ioctl. */
	NEED(ioctl(-1, KVM_RUN, 0) == -1 && errno == EBADF);
	errno = 55;
}

static void on_alarm_jump(int signal)
{
	(void)signal;
	siglongjmp(back, 1);
}

static void ring_alarms(void (*handler)(int), int interval)
{
	struct sigaction action = {.sa_handler = handler};
	struct itimerval timer = {.it_interval.tv_usec = interval, .it_value.tv_usec = interval};
	NEED(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* A guest without exits, which only signals get out of KVM_RUN. */
static int is_interrupted(void)
{
	struct machine machine = make(spin, sizeof(spin));
	ring_alarms(on_alarm, 2000);
	while (alarms < 50) {
		errno = 0;
		/* On a busy host the next alarm may come before errno is looked at. */
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == -1 && (errno == EINTR || errno == 55));
		NEED(machine.run->exit_reason == KVM_EXIT_INTR);
	}
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
	return plain();
}

/* A handler that does not return to KVM_RUN. */
static int jumps(void)
{
	struct machine machine = make(spin, sizeof(spin));
	static int jumped;
	if (sigsetjmp(back, 1))
		jumped++;
	else
		ring_alarms(on_alarm_jump, 2000);
	if (jumped < 20) {
		ioctl(machine.vcpu, KVM_RUN, 0);
		NEED(!"KVM_RUN returned");
	}
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
	memcpy((char *)machine.ram + 0x1000, guest, sizeof(guest));
	start(machine.vcpu);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* Runs until a signal, which must arrive once. */
static void on_term(int signal)
{
	const char *text = signal == SIGTERM ? "signal 15\n" : "signal 2\n";
	/* Not printf: the signal may come while the program is in it. */
	NEED(write(1, text, strlen(text)) > 0);
	alarms++;
}

static int waits(void)
{
	struct machine machine = make(endless, sizeof(endless));
	struct sigaction action = {.sa_handler = on_term};
	NEED(sigaction(SIGTERM, &action, NULL) == 0 && sigaction(SIGINT, &action, NULL) == 0);
	printf("ready\n");
	fflush(stdout);
	while (!alarms) {
		int result = ioctl(machine.vcpu, KVM_RUN, 0);
		NEED(result == 0 || errno == EINTR);
	}
	return 7;
}
