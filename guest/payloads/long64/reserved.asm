; A SIMVIRTIO driver that wrongly relies on the reserved part of the window: it writes 1 there and reads it back. It
; reads 0 over exits and 1 over polling, and in the second case it also reads a port. So it works over both transports,
; but with different numbers of exits.
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
    mov byte [rdi + 0x80], 1
    cmp byte [rdi + 0x80], 0
    je .end
    in al, 0xE9
.end:
    mov eax, 42
    mov [0x400], rax
    hlt

push:
    mov [0x11000 + rcx], al
    inc ecx
    cmp cx, [rdi + 4]           ; max_queue_len
    jne .full
    xor ecx, ecx
.full:
    cmp [rdi + 0x14], ecx
    je .full
    mov [rdi + 0x10], ecx
    ret

message: db "Ana are mere", 0
