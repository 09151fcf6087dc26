; String I/O: ins and outs, byte, word and dword, single and with rep, up and down. The output returns through the FIFO
; of its width, and is compared.
%include "kev.inc"
%define BACK 0x15000
%macro there_and_back 4         ; width, outs, ins, count
    cld
    mov esi, data
    mov ecx, %4
    rep %2
    mov edi, BACK
    mov ecx, %4
    rep %3
    mov esi, data
    mov edi, BACK
    mov ecx, %1 * %4
    repe cmpsb
    must_be_equal

    std                         ; downwards, last element first
    mov esi, data + %1 * (%4 - 1)
    mov ecx, %4
    rep %2
    mov edi, BACK + 0x100 + %1 * (%4 - 1)
    mov ecx, %4
    rep %3
    cld
    mov esi, data
    mov edi, BACK + 0x100
    mov ecx, %1 * %4
    repe cmpsb
    must_be_equal

    mov esi, data + %1          ; one element, without rep
    %2
    mov edi, BACK + 0x200
    %3
    cmp esi, data + 2 * %1
    must_be_equal
    cmp edi, BACK + 0x200 + %1
    must_be_equal
    mov al, [data + %1]
    cmp al, [BACK + 0x200]
    must_be_equal
%endmacro
    begin64
    mov edx, FIFO
    there_and_back 1, outsb, insb, 16
    there_and_back 2, outsw, insw, 8
    there_and_back 4, outsd, insd, 4
    finish
.wrong:
    hlt
data: db "sixteen letters!"
