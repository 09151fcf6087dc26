// Chapter 19: an honest guest. It copies its text with the device and prints the copy: your VMM must still let it do that.
// Then change it: attack your VMM.
.intel_syntax noprefix
.code64
.set REQUEST, 0x30000
.set COPY, 0x40000
.globl _start
_start:
    lea rax, [rip + text]
    mov [REQUEST], rax                          // source
    mov qword ptr [REQUEST + 8], COPY           // destination
    mov dword ptr [REQUEST + 16], text_end - text // length
    mov dword ptr [REQUEST + 20], 0             // is_done
    mov eax, REQUEST
    out 0x40, eax
    cmp dword ptr [REQUEST + 20], 1
    jne end
    mov esi, COPY
next:
    mov al, [rsi]
    inc rsi
    test al, al
    jz end
    out 0xe9, al
    jmp next
end:
    hlt

text: .asciz "an honest guest\n"
text_end:
