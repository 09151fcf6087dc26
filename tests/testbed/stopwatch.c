// stopwatch [-t SECONDS] [-m MEGABYTES] [-f FILE]... [-o OUTPUT] TEXT COMMAND [ARGUMENT]...
//
// Runs a command until TEXT appears in its standard output, and kills it. Prints one line: the milliseconds from the
// start to that moment, and the number that each FILE contained then.
//
// -t  sets the time limit, 120 seconds by default
// -m  writes to and frees this much memory before the start, outside the measured time
// -o  saves the output of the command to a file
//
// Exit status: 0 if the text appeared, 1 if it did not appear within the time limit, 2 for a usage or system error.
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e3 + time.tv_nsec / 1e6;
}

static void touch(size_t bytes)
{
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return;
    memset(memory, 1, bytes);
    munmap(memory, bytes);
}

int main(int count, char **arguments)
{
    const char *files[8], *keep = NULL;
    int nfiles = 0, option;
    double limit = 120;
    while ((option = getopt(count, arguments, "+t:m:f:o:")) != -1) {
        if (option == 't') limit = atof(optarg);
        else if (option == 'm') touch((size_t)atol(optarg) << 20);
        else if (option == 'f' && nfiles < 8) files[nfiles++] = optarg;
        else if (option == 'o') keep = optarg;
        else return 2;
    }
    if (count - optind < 2) return 2;
    const char *text = arguments[optind];
    int ends[2], output = open(keep ? keep : "/dev/null", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (pipe(ends) != 0 || output < 0) return 2;

    double started = now(), found = 0;
    pid_t child = fork();
    if (child == 0) {
        int nothing = open("/dev/null", O_RDONLY);
        dup2(nothing, 0);
        dup2(ends[1], 1);
        close(ends[0]);
        execvp(arguments[optind + 1], arguments + optind + 1);
        perror(arguments[optind + 1]);
        _exit(127);
    }
    close(ends[1]);

    // TEXT may be split across reads, so we keep the last strlen(TEXT) bytes of the output so far.
    static char buffer[1 << 16];
    size_t length = strlen(text), held = 0;
    struct pollfd ready = {.fd = ends[0], .events = POLLIN};
    while (!found) {
        // A negative timeout would make poll wait without a limit.
        double left = limit * 1e3 - (now() - started);
        if (left <= 0 || poll(&ready, 1, (int)left) <= 0) break;
        ssize_t got = read(ends[0], buffer + held, sizeof buffer - held);
        if (got <= 0) break;
        if (write(output, buffer + held, got) != got) return 2;
        if (memmem(buffer, held + got, text, length)) found = now();
        size_t all = held + got;
        held = all < length ? all : length;
        memmove(buffer, buffer + all - held, held);
    }
    if (found) {
        printf("%.1f", found - started);
        for (int i = 0; i < nfiles; i++) {
            char number[32] = "-";
            FILE *file = fopen(files[i], "r");
            if (!file || fscanf(file, "%31s", number) != 1) strcpy(number, "-");
            if (file) fclose(file);
            printf(" %s", number);
        }
        printf("\n");
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return found ? 0 : 1;
}
