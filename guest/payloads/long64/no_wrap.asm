; A SIMVIRTIO driver that never wraps its index and never looks whether the queue is full: right by luck
; where the queue is longer than the message.
bits 64
section .start exec
    mov edi, 0x100000           ; the window
    xor ecx, ecx                ; head
    mov al, 'R'
    call push
.reset:
    cmp [rdi + 0x14], ecx       ; TX tail
    jne .reset
    mov byte [rdi + 7], 0       ; DRIVER_ACK
    mov al, 'C'
    call push
.config:
    cmp byte [rdi + 6], 2
    jne .config
    mov byte [rdi + 7], 4       ; DRIVER_OK
.ready:
    cmp byte [rdi + 6], 4
    jne .ready
    mov esi, message
.next:
    lodsb
    test al, al
    jz .done
    call push
    jmp .next
.done:
    mov eax, 42
    mov [0x400], rax
    hlt

push:
    mov [0x11000 + rcx], al
    inc ecx
    mov [rdi + 0x10], ecx
    ret

message: db "Ana are mere", 0
