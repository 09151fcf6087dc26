; Reads and writes ports at both ends of the I/O bitmap in each width. Then it leaves 42 and ends the run through the
; exit port. The exit code comes from memory, because RAX holds the result.
bits 64
section .start exec
    xor eax, eax
    xor edx, edx
    in al, dx
    out dx, eax
    mov edx, 0xFFFC
    in eax, dx
    mov edx, 0xFFFE
    out dx, ax
    mov edx, 0xFFFF
    in al, dx
    out dx, al
    mov eax, 42
    mov [0x400], rax
    lea rsi, [rel zero]
    mov edx, 0xF4
    outsb
zero: db 0
