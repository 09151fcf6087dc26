; A SIMVIRTIO driver that relies on the reserved part of the window: reads back what it wrote there, which is
; zero by exits and the value by polling, and reads a port where it is the value. So it works both ways, with
; another number of exits.
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
