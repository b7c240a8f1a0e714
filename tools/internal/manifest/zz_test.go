package manifest
import ("testing";"bytes";"strings")
func TestZZ(t *testing.T){
 in:=marshal(t,exampleHeader,example)
 if !bytes.Equal(redigest(in),in){t.Fatal("redigest changes good")}
 bad:=[]byte(strings.Replace(string(in),`"uid":0`,`"uid":7`,1))
 if _,_,err:=parse(bytes.NewReader(bad));err==nil{t.Fatal()}
 if _,_,err:=parse(bytes.NewReader(redigest(bad)));err!=nil{t.Fatal(err)}
}
