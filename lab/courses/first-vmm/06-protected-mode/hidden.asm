; 32-bit code. It shows how its segments are: each part stores a word, and then prints. Code that runs in real mode, or as
; 16-bit code, finds other instructions in the same bytes.
bits 32
org 0x1000

start:
    mov eax, cr0
    and eax, 1                          ; CR0.PE
    mov [0x404], eax
    mov dword [0x180000], 0x12345678    ; above 1 MiB: the limit of DS
    mov eax, [0x180000]
    mov [0x408], eax
    mov edi, 0x1c0000                   ; the segment ES
    mov byte [es:edi], 0x5a
    movzx eax, byte [0x1c0000]
    mov [0x40c], eax
    mov ebx, esp                        ; the stack: a 16-bit SS would use the lower half of ESP only
    push dword 0x600df00d
    mov eax, [ebx - 4]
    mov [0x410], eax
    pop eax
    mov esi, text
.byte:
    lodsb
    test al, al
    jz .done
    out 0xe9, al
    jmp .byte
.done:
    mov eax, 42
    mov [0x400], eax
    hlt

text:
