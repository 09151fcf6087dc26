// Chapter 14: a guest to try your VMM with. It prints "handler" for each interrupt with vector 0x40:
//
//   before sti
//   handler
//   after sti
//   handler
//   after hlt
.intel_syntax noprefix
.code16
.globl _start
_start:
    mov word ptr [0x40 * 4], offset handler
    mov word ptr [0x40 * 4 + 2], 0

    // The bell rings while interrupts are off.
    mov al, 0x40
    out 0x10, al
    mov si, offset before_sti
    call print
    sti
    // The guest waits a while for the handler, without an exit.
    mov cx, 2000
wait:
    cmp byte ptr [count], 1
    je taken
    loop wait
    mov si, offset no_handler
    call print
    hlt
taken:
    cli
    mov si, offset after_sti
    call print

    // HLT waits for the next interrupt.
    mov al, 0x40
    out 0x10, al
    sti
    hlt
    cli
    mov si, offset after_hlt
    call print
    hlt

handler:
    push ax
    push si
    inc byte ptr [count]
    mov si, offset in_handler
    call print
    pop si
    pop ax
    iret

print:
    mov al, [si]
    inc si
    test al, al
    jz printed
    out 0xe9, al
    jmp print
printed:
    ret

count: .byte 0
before_sti: .asciz "before sti\n"
after_sti: .asciz "after sti\n"
after_hlt: .asciz "after hlt\n"
no_handler: .asciz "no handler after sti\n"
in_handler: .asciz "handler\n"
