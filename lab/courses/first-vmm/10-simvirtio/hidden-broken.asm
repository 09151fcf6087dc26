; Breaks the protocol of SIMVIRTIO: its text, which is appended, begins with R (a C without R), A (a C while driver_status is
; not DRIVER_ACK), U (an unknown command) or H (in READY, a
; TX head that is much too large). Then it prints the rest of the text if
; the device is BROKEN.
bits 64
org 0x1000
WINDOW equ 0x100000
TX_BUFFER equ 0x11000
    mov edi, WINDOW
    mov ecx, 1
    mov al, [text]
    cmp al, 'R'
    je .only_c
    cmp al, 'U'
    je .unknown
    cmp al, 'H'
    je .head
    mov byte [TX_BUFFER], 'R'
    mov dword [rdi + 0x10], 1
    mov byte [rdi + 7], 2
    mov byte [TX_BUFFER + 1], 'C'
    mov dword [rdi + 0x10], 2
    jmp .look
.only_c:
    mov byte [TX_BUFFER], 'C'
    mov dword [rdi + 0x10], 1
    jmp .look
.unknown:
    mov byte [TX_BUFFER], 'X'
    mov dword [rdi + 0x10], 1
    jmp .look
.head:
    mov byte [TX_BUFFER], 'R'
    mov dword [rdi + 0x10], 1
    mov byte [rdi + 7], 0
    mov byte [TX_BUFFER + 1], 'C'
    mov dword [rdi + 0x10], 2
    mov byte [rdi + 7], 4
    mov esi, not_ready
    cmp byte [rdi + 6], 4
    jne print
    mov dword [rdi + 0x10], 0x7FFFFFF0
.look:
    mov esi, text + 1
    cmp byte [rdi + 6], 0x40
    je print
    mov esi, not_broken
print:
    lodsb
    test al, al
    jz end
    out 0xE9, al
    jmp print
end:
    hlt
    jmp end
not_ready: db "driver: the device is not READY (4)", 10, 0
not_broken: db "driver: the device is not BROKEN (0x40)", 10, 0
text:
