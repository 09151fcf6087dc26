; 64-bit code. It stores a number at the virtual address 0x40000000 (1 GiB), and reads it at 0x200000: both are the same memory. It sets
; CR0.WP first: without this bit, the kernel of a guest may also write to pages that are not writable.
bits 64
org 0x1000
default abs

start:
    mov rax, cr0
    or eax, 1 << 16                     ; WP (write protect)
    mov cr0, rax
    mov rax, 0x123456789abcdef0         ; ten bytes that only 64-bit code reads as one instruction
    mov [0x408], rax
    mov rbx, 0x40000000
    mov r8, 0x600df00d
    mov [rbx], r8
    mov r9, [0x200000]
    mov [0x410], r9
    push r9
    pop qword [0x418]
    mov rsi, text
.byte:
    lodsb
    test al, al
    jz .done
    out 0xe9, al
    jmp .byte
.done:
    mov eax, 42
    mov [0x400], rax
    hlt

text:
