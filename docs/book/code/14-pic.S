// ANCHOR: all
.intel_syntax noprefix
.code16
.globl _start
_start:
    mov word ptr [0x44 * 4], offset handler
    mov word ptr [0x44 * 4 + 2], 0
    // The first interrupt controller: its lines 0 to 7 become the vectors 0x40 to 0x47.
    mov al, 0x11
    out 0x20, al
    mov al, 0x40
    out 0x21, al
    mov al, 4
    out 0x21, al
    mov al, 1
    out 0x21, al
    // All lines but line 4 are masked.
    mov al, 0xef
    out 0x21, al
    mov bl, 3
again:
    out 0x10, al
    sti
    hlt
    cli
    dec bl
    jnz again
    mov al, 0
    out 0xf4, al

handler:
    mov al, '!'
    out 0xe9, al
    mov al, '\n'
    out 0xe9, al
    // End of interrupt: the controller may deliver the next one.
    mov al, 0x20
    out 0x20, al
    iret
// ANCHOR_END: all
