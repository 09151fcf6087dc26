// Uses the queue at port 0xBB and the constant at port 3, with accesses of 1, 2 and 4 bytes. Each width has a queue of its own.
#include "kev.inc"
    mov eax, 0x11223344
    out FIFO, al
    out FIFO, ax
    out FIFO, eax
    mov edx, FIFO
    mov eax, 0x55667788
    out dx, al
    out dx, ax
    out dx, eax

    in eax, FIFO                            // the oldest first
    expect eax, 0x11223344
    in ax, FIFO
    expect ax, 0x3344
    in al, FIFO
    expect al, 0x44
    in al, dx
    expect al, 0x88
    in ax, dx
    expect ax, 0x7788
    in eax, dx
    expect eax, 0x55667788
    in al, dx                               // empty
    expect al, 0xff

    in eax, CONSTANT
    expect eax, 0x600dcafe
    in ax, CONSTANT
    expect ax, 0xcafe
    in al, CONSTANT
    expect al, 0xfe
    finish
wrong:
    hlt
