; Chapter 14: a guest in real mode that counts interrupts. Vectors 0x40 and 0x41 have handlers.
; The bell at port 0x10 asks for an interrupt.
bits 16
org 0x1000
PRINT equ 0xe9
BELL equ 0x10

start:
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0xf000
    mov word [0x40 * 4], first
    mov [0x40 * 4 + 2], ax
    mov word [0x41 * 4], second
    mov [0x41 * 4 + 2], ax

; Interrupts are off: the request has to wait.
    mov al, 0x40
    out BELL, al
    mov si, is_off
    call print
    call print_count
; Interrupts go on: the handler runs without another exit of the guest's own.
    sti
    mov cx, 2000
wait_for_it:
    cmp byte [count], 0
    jne seen
    loop wait_for_it
seen:
    mov al, [count]
    cli
    mov [count], al
    mov si, is_on
    call print
    call print_count

; HLT waits for an interrupt.
    mov al, 0x41
    out BELL, al
    sti
    hlt
    cli
    mov si, after_hlt
    call print
    call print_count

; Three requests wait: they come in their order, and one after the other.
    mov byte [is_loud], 1
    mov si, in_order
    call print
    mov al, 0x40
    out BELL, al
    mov al, 0x41
    out BELL, al
    mov al, 0x40
    out BELL, al
    sti
    mov cx, 2000
wait_for_three:
    cmp byte [count], 5
    je three
    loop wait_for_three
three:
    cli
    mov al, 10
    out PRINT, al

    mov si, text
    call print
; Nothing wakes a guest that halts with interrupts off.
    mov al, 0x40
    out BELL, al
    hlt
    mov si, awake
    call print
    hlt

first:
    push ax
    mov al, '1'
    jmp handle
second:
    push ax
    mov al, '2'
handle:
    inc byte [count]
    cmp byte [is_loud], 0
    je handled
    push ax
    mov al, '<'
    out PRINT, al
    pop ax
    out PRINT, al
    mov al, '>'
    out PRINT, al
handled:
    pop ax
    iret

print_count:
    mov al, [count]
    add al, '0'
    out PRINT, al
    mov al, 10
    out PRINT, al
    ret

print:
    mov al, [si]
    inc si
    test al, al
    jz printed
    out PRINT, al
    jmp print
printed:
    ret

count db 0
is_loud db 0
is_off db "interrupts off: ", 0
is_on db "interrupts on: ", 0
after_hlt db "after hlt: ", 0
in_order db "in order: ", 0
awake db "awake after cli and hlt", 10, 0
text:
