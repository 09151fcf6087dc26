.intel_syntax noprefix
.code16
.globl _start
_start:
    // The entry of vector 0x40 in the interrupt vector table.
    mov word ptr [0x40 * 4], offset handler
    mov word ptr [0x40 * 4 + 2], 0
again:
    sti
    hlt
    jmp again

handler:
    mov al, '!'
    out 0xe9, al
    mov al, '\n'
    out 0xe9, al
    iret
