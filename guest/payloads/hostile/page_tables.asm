; Clears its own PML4 and reloads CR3.
bits 64
section .start exec
    mov rax, cr3
    mov qword [rax], 0
    mov cr3, rax
    nop
    hlt
