; The second vCPU prints bytes of RX, which the device's thread has written, while the first vCPU drives the device. rdi
; holds the vCPU's number.
%include "driver.inc"
    bits 64
    section .start exec
    test edi, edi
    jnz .second
    mov edi, 0x100000
    xor ecx, ecx
    reset
    config
    ready
    mov byte [rdi + 10], 1      ; q1_ctl: this driver reads
.wait:
    cmp dword [rdi + 0x18], 8   ; RX head: the device has delivered eight bytes
    jb .wait
    mov byte [go], 1
    fill 'x', 64
    mov ecx, 64
    mov [rdi + 0x10], ecx
    wait_consumed
.done:
    cmp byte [printed], 1
    jne .done
    finish
.second:
    cmp byte [go], 1
    jne .second
    mov edi, 0x12000            ; the RX buffer
    mov esi, 8
    mov eax, 1                  ; the hypercall Print
    mov edx, 0x500
    out dx, eax
    mov byte [printed], 1
.park:
    hlt
    jmp .park
go: db 0
printed: db 0
