// ANCHOR: all
// Prints a line, and then jumps to itself.
.intel_syntax noprefix
.code16
.globl _start
_start:
    mov si, offset text
next:
    mov al, [si]
    inc si
    test al, al
    jz here
    out 0xe9, al
    jmp next
here:
    jmp here
text:
    .asciz "hello\n"
// ANCHOR_END: all
